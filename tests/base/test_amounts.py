from d3cli.base.amounts import parse_size, readable_size, signed_percent


def test_sizes_are_read_with_units_of_1000_and_1024() -> None:
    sizes = {"10GiB": 10 << 30, "1.5 gb": 1_500_000_000, "800MB": 800_000_000, " 7KiB ": 7168}
    sizes |= {"5B": 5, "0": 0, "2TB": 2 * 10**12}
    assert {text: parse_size(text) for text in sizes} == sizes
    for text in ("", "10", "GB", "-1GB", "1 GB GB", "1e3GB", "5iB", "٣GB", "9" * 400 + "GB"):
        assert parse_size(text) is None, text


def test_sizes_have_three_digits() -> None:
    sizes = {0: "0 MB", 52_340: "0.0523 MB", 131e6: "131 MB", 999.7e6: "1,000 MB"}
    sizes |= {1.234e9: "1.23 GB", 15.94e9: "15.9 GB", 1234e9: "1,234 GB"}
    assert {size: readable_size(size) for size in sizes} == sizes


def test_a_change_has_a_sign_and_two_digits() -> None:
    changes = {0.008: "+0.80%", -0.0312: "-3.12%", -1e-6: "+0.00%", 5.78: "+578.00%"}
    assert {change: signed_percent(change) for change in changes} == changes
