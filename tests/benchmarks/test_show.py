from benchmarks import show


def test_brackets_in_a_table_are_printed(capsys):
    show.print_table("t", ["name", "s [quartiles]"], [["a [b]", "1 [0, 2]"]], words=1)
    printed = capsys.readouterr().out
    assert "s [quartiles]" in printed and "a [b]" in printed


def test_words_stand_left_in_markdown(capsys):
    show.print_markdown("title", ["name", "other", "s"], [["a", "b", "1"]], "note", words=2)
    expected = "**title**\n\n| name | other | s |\n| --- | --- | ---: |\n| a | b | 1 |\n\nnote\n\n"
    assert capsys.readouterr().out == expected


def test_lines_are_drawn_where_there_are_points(tmp_path):
    panels = {"seconds": {"a": [(16, 1.0), (32, 2.0)], "b": [(16, 3.0)]}, "MiB": {"a": [(16, 1.0)]}}
    path = show.plot_lines(tmp_path / "deep" / "lines.png", "title", panels, "length")
    assert path.read_bytes().startswith(b"\x89PNG")
