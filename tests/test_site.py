"""What the site of the documentation has beside its pages, and what stops its build."""

import pytest

from tools import site


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.html", '<script src="https://host/a.js"></script>', "https://host/a.js"),
        ("a.html", '<link rel="stylesheet" href="//host/a.css">', "//host/a.css"),
        ("a.html", '<img src="http://host/a.png">', "http://host/a.png"),
        ("a.css", "@import 'https://host/b.css';", "https://host/b.css"),
        ("a.css", "a { background: url(//host/a.png) }", "//host/a.png"),
        ("a.html", '<a href="https://host/">there</a><img src="a.png">', None),
        ("a.html", '<link rel="canonical" href="https://host/a.html">', None),
        ("a.css", "a { background: url('data:image/png;base64,AA==') }", None),
    ],
)
def test_what_a_page_loads_from_another_host_is_found(tmp_path, name, text, asked):
    (tmp_path / name).write_text(text)
    assert list(site.find_requests(tmp_path)) == ([f"{name}: {asked}"] if asked else [])


def test_a_link_to_no_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#there) [b](https://host/x) [c](#here)")
    assert list(site.find_links(page)) == [("page.md", "page.md")]
    page.write_text("[a](gone.md)")
    with pytest.raises(ValueError, match=r"page\.md: links to gone\.md: no such file"):
        list(site.find_links(page))


def test_a_docstring_is_set_as_it_is_laid_out():
    text = "Of f_g:\n\n    min f * g\n\nDepartures:\n1. One of <w>\n   goes on.\n2. `a_b` two."
    assert site.to_markdown(text).splitlines() == [
        "Of f\\_g:",
        "",
        "    min f * g",
        "",
        "Departures:",
        "",
        "1.  One of \\<w>",
        "    goes on.",
        "2.  `a_b` two.",
    ]
