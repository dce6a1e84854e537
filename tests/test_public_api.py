"""The names that Python code imports from d3cli."""

import d3cli


def test_every_public_name_comes_from_the_module_that_defines_it() -> None:
    homes = {name: module for module, names in d3cli._HOMES.items() for name in names}
    assert sorted(homes) == sorted(d3cli.__all__)
    for name, module in homes.items():
        assert getattr(d3cli, name).__module__ == f"d3cli.{module}"
