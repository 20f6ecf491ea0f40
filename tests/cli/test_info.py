import json

from tests.cli_support import error_line, run


def test_info_shows_the_manifest(bundle):
    output = run("info", bundle).stdout
    for shown in ("bundle-", "MockEncoder", "40 safe, 20 unsafe", "prototypes.safetensors", "0.5000", "layers used", "CC0"):
        assert shown in output


def test_info_prints_json(bundle):
    shown = json.loads(run("info", bundle, "--json").stdout)
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert {name: shown[name] for name in manifest} == manifest
    assert set(shown["layers_used"]) <= {1, 2, 3}
    assert shown["bundle_id"].startswith("bundle-")


def test_info_finds_a_damaged_file(bundle):
    prototypes = bundle / "prototypes.safetensors"
    prototypes.write_bytes(prototypes.read_bytes()[:-1])
    assert "truncated or altered" in error_line(run("info", bundle))
