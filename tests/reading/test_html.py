"""HTML as the text that a mail program shows."""

from __future__ import annotations

import pytest

from portal.reading.html import target_of, text_of


def words(markup: str) -> str:
    return " ".join(text_of(markup).split())


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        # Tokens (WHATWG HTML, 13.2.5).
        ("<p>Dear Pat</p><![FOR]><p>order</p>", "Dear Pat order"),
        ("a < b, 1<2, <3 and <>", "a < b, 1<2, <3 and <>"),
        ("a<!-- no -->b<!--> c <!---> d <!-- no --!> e", "ab c d e"),
        ("a<!-- the end", "a"),
        ("a<!DOCTYPE html>b<?php no ?>c</ no>d</>e<![CDATA[ no ]]>f", "abcdef"),
        ("a<b", "a"),
        ('a<b title="x', "a"),
        ("a</", "a</"),
        ('<a title="1 > 0" b=\'>\' c=">" d>x</a>', "x"),
        ('<a =">x</a>', "x"),
        ("<p/class=x>a<br/>b</p/>", "a b"),
        ("<P>A<BR>b</P>", "A b"),
        ("caf&eacute; &lt;b&gt; &#252;&#xFC; &copy 5 &amp;amp; &unknown;", "café <b> üü © 5 &amp; &unknown;"),
        (f"&#{'9' * 5000};&#x{'f' * 5000};&#{'0' * 5000}65;", "\ufffd\ufffd\ufffd"),
        # Elements whose content is no text, or no markup.
        ("<title>no</title><style>no</style><script>no</script><iframe>no</iframe><template>no</template>yes", "yes"),
        ("<script>no <p>no</SCRIPT >yes", "yes"),
        ("a<style>p{}", "a"),
        ("<textarea>&lt;b> <i></textarea><xmp><b></xmp>", "<b> <i> <b>"),
        ("<noscript>yes</noscript>", "yes"),
        # What stands for something that is not text.
        (
            '<img src=a alt="Autumn sale"><input type=submit value="Log in"><input type=hidden value=no>',
            "Autumn sale Log in",
        ),
        # Hidden text.
        ('<div style="display:none">no</div>yes', "yes"),
        ('<div style="DISPLAY : None !important">no</div>yes', "yes"),
        ('<div style="display:none;display:block">yes</div>', "yes"),
        ('<div style="display:none!important;display:block">no</div>yes', "yes"),
        ('<div style="/**/display/**/:/**/none">no</div>yes', "yes"),
        ("<div hidden>no<b>no</b></div>yes", "yes"),
        ('<span style="visibility:hidden">no <b style="visibility:visible">yes</b></span>', "yes"),
        (
            '<div style="font-size:0">no <b style="font-size:inherit">no</b><b style="font-size:12px">yes</b></div>',
            "yes",
        ),
        ('<div style="font-size:1px">no</div><b style="font-size:.00em">no</b>yes', "yes"),
        ('<div style="opacity:0">no</div><div style="max-height:0;overflow:hidden">no</div>yes', "yes"),
        ('<b style="color:#FFF;background:white">no</b><b style="color:transparent">no</b>yes', "yes"),
        ('<b style="color:white">no <a href="#">yes</a>, <i style="color:red">yes</i></b>', "yesyes"),
        ("<font color=#fefefe>no</font><font color=#aaa>yes</font>", "yes"),
        ('<img alt=no style="display:none"><a href="//h.example" style="display:none">no</a>yes', "yes"),
        ("<style>.n, #m {display:none}</style><p class='x N'>no</p><p id=m>no</p><p id=n>yes</p>", "yes"),
        ("<style><!-- p.n{visibility:hidden} --></style><p class=n>no</p><i class=n>yes</i>", "yes"),
        # What a browser shows although something seems to hide it.
        ("<p hidden>no<p>yes", "yes"),
        ('<p style="opacity:">yes<p style="opacity:0px">yes<p style="font-size:">yes', "yes yes yes"),
        ('<b style="color:#fff">yes</b><p style="background:#000">yes', "yes yes"),
        ('<b style="color:#fff;background:#fff;text-shadow:0 0 black">yes</b>', "yes"),
        ('<b style="color:#fff;background:#fff url(a.png)">yes</b>', "yes"),
        ('<i style="max-height:0;overflow:hidden">yes</i>', "yes"),
        ('<div style="max-height:0;overflow:hidden;padding:9px">yes</div>', "yes"),
        ('<div style="font-size:1px"><b style="font-size:2000%">yes</b></div>', "yes"),
        ('<p style="left:-9999px">yes<p style="text-indent:-999px">yes', "yes yes"),
        ("<ul><li hidden>no<li>yes</ul>", "yes"),
        ("<table><tr><td hidden>no<td>yes<tr><td>yes", "yes yes"),
        ("<div><span hidden>no</div>yes", "yes"),
        ("<h1 hidden>no</h2>yes", "yes"),
        ("<table hidden>yes<tr><td>no</td></tr><b>yes</b></table>", "yes yes"),
        ("<style>@media print{.n{display:none}}</style><p class=n>yes", "yes"),
        ("<style>.n{display:none} .n{display:block}</style><p class=n>yes", "yes"),
        ("<style>.n{display:none}</style><p class=n style='display:block'>yes", "yes"),
        ("<style>.n{font-size:0} .m{font-size:9px}</style><div class=n>no<p class=m>yes</p></div>", "yes"),
        ("<style>.n{display:none;font-size:9px}</style><p class=n>no</p>yes", "yes"),
        ("<style>.n{opacity:0} .n{color:red}</style><p class=n>no</p>yes", "yes"),
        ("<style>div .n{display:none}</style><p class=n>yes", "yes"),
        ("<style>@media all{.n{display:block!important}}</style><p class=n style='display:none'>yes", "yes"),
        ("<style>*{display:block!important}</style><p style='display:none'>yes", "yes"),
        ("<style>.m{display:block!important}</style><p class=n style='display:none'>no</p>yes", "yes"),
    ],
)
def test_what_is_visible_is_text(markup: str, expected: str) -> None:
    assert words(markup) == expected


@pytest.mark.parametrize(
    "markup",
    [
        # Style sheets that do not apply everywhere.
        "<!--[if mso]><style>.n{display:none}</style><![endif]--><div class=n>yes</div>",
        "<title><style>p{display:none}</style></title><p>yes",
        "<textarea><style>p{visibility:hidden}</textarea><p>yes",
        "<a title='<style>p{display:none}</style>'></a><p>yes",
        '<style media="print">p{display:none}</style><p>yes',
        "<style media=print media=all>p{display:none}</style><p>yes",
        '<style type="text/less">p{display:none}</style><p>yes',
        "<template><style>p{display:none}</style></template><p>yes",
        "<noscript><style>p{display:none}</style></noscript><p>yes",
        "<style>.n{display:none}</style><style media=screen>.n{display:block}</style><p class=n>yes",
        "<style media=print>.n{display:block!important}</style><p class=n style='display:none'>yes",
        # Rules that browsers ignore, or that others overrule.
        "<style>} p{display:none}</style><p>yes",
        "<style>x; p{display:none}</style><p>yes",
        "<style>p, %{display:none}</style><p>yes",
        "<style>.1{display:none}</style><p class=1>yes",
        "<style>p{display:none</style><p>yes",
        "<style>p{visibility:hidden} p{visibility:inherit}</style><p>yes",
        "<style>p{font-size:0} p{font-size:unset}</style><p>yes",
        "<style>p{x:'\n;display:none;'}</style><p>yes",
        "<style>p{x:(;display:none}</style><p>yes",
        "<style>p{x:[;display:none}</style><p>yes",
        "<style>.n{display:block!important</style><p class=n style='display:none'>yes",
        "<style>.n{display:block!important;b{x:y}}</style><p class=n style='display:none'>yes",
        "<style>div{.n{display:block!important}}</style><p class=n style='display:none'>yes",
        "<style>.\\6e{display:block!important}</style><p class=n style='display:none'>yes",
        "<style>:not(b){display:block!important}</style><p style='display:none'>yes",
        "<style>.ü{display:block!important}</style><p class=ü style='display:none'>yes",
        "<style>.n{all:initial!important}</style><p class=n style='display:none'>yes",
        "<style>@keyframes a{to{opacity:1}} .n{animation:a 1s forwards}</style><p class=n style='opacity:0'>yes",
        "<style>div{padding:9px}</style><div style='height:0;overflow:hidden'>yes</div>",
        # Declarations that browsers ignore, or that others overrule.
        '<p style="display:block; display:none !ie">yes',
        '<p style="display:block; display:none !important x">yes',
        "<p style='x:\"; display:none; y:\"'>yes",
        "<p style='x:\"\n; display:none'>yes",
        "<p style='x:(; display:none'>yes",
        "<p style='x:{; display:none; }'>yes",
        "<p style='x:\\; display:none'>yes",
        "<p style='display:none;all:initial'>yes",
        '<p style=\'display:none;x:"/*";display:block;y:"*/"\'>yes',
        "<p style='font-size:9px;font-size:0.px'>yes",
        "<p style='font-size:9px;font:0'>yes",
        "<p style='font-size:0;font:9px a'>yes",
        "<div style='height:0;overflow:hidden'><p style='position:absolute'>yes</div>",
        # Text that is white, or in no colour, but on something else.
        "<p style='color:#fff;background-color:#fff;background:#000'>yes",
        "<p style='color:#fff'>yes<p style='back&#103;round:#000'>",
        "<p style='color:#fff'>yes<p style='back\\67 round:#000'>",
        "<p style='color:#fff;background:#fff'><i style='background:#000'>yes</i>",
        "<style>.c{color:#000}</style><p style='color:#fff'><span class=c>yes</span>",
        "<style>*{color:#000 !important}</style><p style='color:#fff'>yes",
        "<style>p{all:initial !important}</style><p style='color:#fff'>yes",
        "<p style='color:#fff'><mark>yes</mark>",
        "<p style='color:#fff'><textarea>yes</textarea>",
        "<p style='color:#fff'><button>yes</button>",
        "<p style='color:#fff'><table><td>yes",
        "<p style='color:#fff;-webkit-text-stroke:1px #000'>yes",
        "<p style='color:#fff;box-shadow:inset 0 0 9px 9px #000'>yes",
        "<p style='color:#fff;outline:9px solid #000'>yes",
        "<p style='color:#fff;border:20px solid #000;height:0'>yes",
        "<p style='color:transparent'><i style='-webkit-text-fill-color:#000'>yes</i>",
        "<img src=a><p style='color:#fff;margin-top:-99px'>yes",
        "<svg><rect/></svg><p style='color:#fff;position:relative;top:-9px'>yes",
        "<meta name=color-scheme content=dark><font color=#fff>yes</font>",
        # Elements that browsers ignore, merge or end.
        "<html><head style='display:none'><meta name=a><p>yes",
        "<body><head hidden>yes",
        "<div>a<body hidden></div>yes",
        "<frameset hidden>yes",
        "<div>a<td hidden>yes</div>",
        "<div><tr style='display:none'>yes</div>",
        "<p hidden><td><p>yes",
        "<div><caption hidden>yes</div>",
        "<colgroup hidden>yes",
        "<keygen hidden>yes",
        "<form><form hidden>yes",
        "<div><form></div><form hidden>yes",
        "<table><form hidden><tr><td>yes",
        "<p hidden>x<hgroup>yes",
        "<p hidden>x<listing>yes",
        "<p hidden>x<search>yes",
        "<p hidden>x<dialog>yes",
        "<ruby><rt hidden>x<rt>yes",
        "<ruby><dt hidden>x<rt>yes",
        "<a hidden>x<button><a>yes",
        "<table><tr hidden><td>x<tbody><td>yes",
        "<table><tbody hidden><tr><td>x<tbody><tr><td>yes",
        "<table><caption hidden>x<tr><td>yes",
        "<table hidden><table><tr><td>yes",
        "<div style='font-size:0'><table><td>yes",
        "<select hidden><input>yes",
        "<select><title><option>yes</title></select>",
        "<svg><style><p>yes</p></style></svg>",
        "<math><title><p>yes</p></title></math>",
        "<svg hidden><p>yes",
        "<svg><g hidden/><text>yes</text></svg>",
        "<svg><p><style><!--</style><p>yes",
        "<svg/><style><!--</style><p>yes",
        "<svg><text><![CDATA[yes>]]></text></svg>",
        "<div hidden><svg></svg></div><svg></svg>yes",
        "<svg><template><b>yes",
        "<marquee hidden>yes",
        "<p style='font-size:1px'><big><big>yes",
        # End tags that browsers ignore, and what they keep open.
        "<footer><table><tr></footer><dt style='display:none'><td>yes",
        "<i style='visibility:hidden'><u><table style='visibility:visible'><td></u>yes",
        "<i style='visibility:hidden'><u><div style='visibility:visible'></u>yes",
        "<table hidden><td>x</tr>yes",
        "<table><template><tfoot><td hidden>x</template>yes",
        "<table><td hidden>x</tr>yes",
        "<p style='font-size:0'><b><table><listing style='font-size:9px'></thead><i>yes",
        "<table style='font-size:0'><td><p style='font-size:9px'>x</table><td style='font-size:0'>yes",
        "<rt><div><rt><section style='opacity:0'>x</div>yes",
        "<i style='visibility:hidden'><li style='visibility:visible'><section><li>yes",
        # Formatting elements that browsers open again.
        "<b style='font-size:12px'><p style='font-size:0'>x</b>yes",
        "<b><span style='display:none'><i>x<p>yes</b>",
        "<a><span style='display:none'><div>yes<a>",
        "<p><b style='font-size:12px'>x</p><div style='font-size:0'>yes",
        "<div style='font-size:0'><p><b style='font-size:12px'>x</p>yes",
        "<p><i style='visibility:visible'>x</p><div style='visibility:hidden'>yes",
        "<div style='visibility:hidden'><form style='visibility:visible'>yes",
        "<div style='visibility:hidden'><p style='visibility:visible'><table><td>yes",
        "<p style='visibility:hidden'><table><td>yes",
    ],
)
def test_in_doubt_text_is_shown(markup: str) -> None:
    assert "yes" in words(markup)


def test_fields_show_their_value_or_what_to_enter() -> None:
    shown = "<input type=email value=a@b><input type=TEL placeholder=Phone><input type=unknown value=c>"
    hidden = "<input type=hidden value=no><input type=checkbox value=no><input type=password value=no placeholder=Word>"
    assert words(shown + hidden) == "a@b Phone c Word"


@pytest.mark.parametrize(
    "markup",
    [
        "<style type='text/css' media='Screen'>@import 'a'; .n{display:none}</style><p class=n>no</p>yes",
        "<style>@font-face{src:url('a.woff')} .n{display:none;font-family:'A'}</style><p class=n>no</p>yes",
        "<style>@media (max-width:600px){.m{width:100%!important}} .n{display:none}</style><p class=n>no</p>yes",
        "<div style=\"font-family:'A;B',serif;background:url('x');display:none\">no</div>yes",
        "<html><head><style>p{margin:0}</style></head><body><div hidden>no</div>yes",
        "<table><tr hidden><td>no</td></tr><tr><td>yes</td></tr></table>",
        "<table><tr><td><table hidden><tr><td>no</td></tr></table>yes</td></tr></table>",
        "<p style='color:#ffffff'>no</p><p style='color:#333;background-color:#fff'>yes</p>",
        "<style>p{margin:0}</style><font color=white>no</font>yes",
        "<p style='color:rgba(0, 0, 0, 0)'>no</p>yes",
        "<b style='font-size:12px'>yes</b><div style='font-size:0'>no</div>",
        "<b style='font-size:12px'>yes<span style='font-size:0'>no</span></b>",
        "<b>yes<span style='display:none'>no</span><div style='display:none'><p>no</div></b>",
        "<span style='display:none'><b><p>no</p></b></span>yes",
        "<table><tr hidden><td>no</table>yes",
        "<table><tr><td>yes</table><table hidden><tr><td>no</table>",
        "<p><font color=black>yes</p><div style='font-size:0'>no</div>",
        "<table><tr><td>yes</td></tr></table></div></tr><p hidden>no",
    ],
)
def test_hidden_text_is_left_out(markup: str) -> None:
    assert words(markup) == "yes"


def test_lines_are_those_on_the_screen() -> None:
    markup = "<pre>one\n two</pre><p>a\nb</p><table><tr><td>c</td><td>d</td></tr><tr><td>e</td></tr></table>f<br>g"
    lines = [" ".join(line.split()) for line in text_of(markup).splitlines()]
    assert [line for line in lines if line] == ["one", "two", "a b", "c d", "e", "f", "g"]


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ('<a href="https://evil.example/x">Your bank</a>!', "Your bank [evil.example]!"),
        ('<a href="//a.example">x<a href="//b.example">y</a>', "x [a.example]y [b.example]"),
        ('<base href="https://evil.example/"><a href="login">Your bank</a>', "Your bank [evil.example]"),
        ('<base href="https://evil.example/"><a href="https://b.example/">x</a>', "x [b.example]"),
        ('<a href="">x</a><base target=a><base href="//evil.example"><base href="//b.example">', "x [evil.example]"),
        ('<base href="//evil.example"><a name=x>x</a><form>y</form><!-- <base> -->', "x y"),
        ("<svg><a xlink:href='//evil.example/'>x</a></svg>", "x [evil.example]"),
        ('<a href="login">x</a><a href="#top">y</a><a name=z>z</a>', "xyz"),
        ('<form action="//evil.example/"><input value="Password"></form>', "Password [evil.example]"),
        ('<form action="a"><button formaction="//evil.example/">Go</button></form>', "Go [evil.example]"),
        ('<map><area href="//evil.example/" alt="Offer"></map>', "Offer [evil.example]"),
        ('<a href="//evil.example/">x', "x [evil.example]"),
        ('<a href="//evil.example/"><img src=x></a>', "[evil.example]"),
        ('<div><a href="//evil.example/">x</div>y', "x [evil.example] y"),
    ],
)
def test_targets_follow_what_leads_there(markup: str, expected: str) -> None:
    assert words(markup) == expected


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("https://user:word@h.example:8443/p?q#f", "h.example:8443"),
        ("HTTP:/\\h.example", "h.example"),
        ("http://a@%65vil.example/%40b.example", "evil.example"),
        ("https:h.example", "h.example"),
        ("\x01 ht\ntp://h.example ", "h.example"),
        ("mailto:a@h.example?subject=x", "a@h.example"),
        ("javascript:alert(1)", "javascript:"),
        ("data:text/html,x", "data:"),
        ("", ""),
        ("page.html", ""),
    ],
)
def test_targets_are_read_as_browsers_do(href: str, target: str) -> None:
    assert target_of(href) == target
