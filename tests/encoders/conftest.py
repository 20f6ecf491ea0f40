"""Models of this size run faster on one thread than on several, above all while another test run uses the machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
