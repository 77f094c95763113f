from data_pipeline.base.table import table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("run", "loss", "left"), ("arc", "0.12345", ""), ("a longer one", "1", "2 h")]
    assert table(rows, "<>", indent="  ") == [
        "  run              loss  left",
        "  arc           0.12345",
        "  a longer one        1   2 h",
    ]


def test_a_table_of_no_rows_has_no_lines() -> None:
    assert table([]) == []
