"""Nothing that is in a Markdown table can leave its cell."""

import pytest

from agl_core.reporting.markdown import escape, table


@pytest.mark.parametrize("evil", ["a|b", "a\nb", "a\\|b", "`x` | `y", "<script>", "# x", "[x](y)", "*x*"])
def test_nothing_shown_can_leave_its_cell(evil: str) -> None:
    rows = table(["name", "value"], [[evil, evil], ["a", "b"]]).splitlines()
    assert len(rows) == 4
    assert {len(row.replace("\\\\", "").replace("\\|", "").split("|")) for row in rows} == {4}
    assert "<script" not in rows[2]


def test_text_is_shown_as_it_is() -> None:
    assert escape("plain text, 3 x 4 (50 %) a_b") == "plain text, 3 x 4 (50 %) a_b"
    assert escape("a|b\nc\\d <e> & `f`") == "a\\|b c\\\\d &lt;e&gt; &amp; \\`f\\`"
    assert table(["x"], [["a|b"]]) == "| x |\n| --- |\n| a\\|b |"
