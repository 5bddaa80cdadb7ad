"""Domains that look like others: whole labels in other scripts, mixed scripts, letters that pass for ASCII ones."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.model import confusables
from portal.model.domains import shown_address, to_ascii
from portal.model.look_alikes import looks_alike
from portal.model.sender import LOOKS_ALIKE, sender_shown
from tests.digests.test_compose import delivery
from tests.paths import ROOT

LOOK_ALIKES = {
    "Cyrillic": ["аррӏе.com", "xn--80ak6aa92e.com", "ѕсоре.co.uk", "раура.com", "www.орега.com", "хероо-гоо.de"],
    "Cyrillic, capitals": ["АРРӀЕ.com", "АВВ.com"],
    "Cyrillic below a foreign domain": ["аррӏе.ελ", "аррӏе.中国"],
    "Greek": ["ονο.com", "νικο.gr", "αρτικ.com", "ΑΒΒ.com"],
    "Armenian": ["օոս.com", "հսց.org", "զսօոռ.com", "սառցգ.com"],
    "Cherokee": ["ᎪᏢᏢᏞᎬ.com", "ꭺꮲꮲꮮꭼ.com"],
    "Lisu": ["ꓐꓮꓠꓗ.com"],
    "Coptic": ["ⲟⲣⲥ.com"],
    "Canadian syllabics": ["ᗅᗷᗷ.com"],
    "mixed": ["pаypal.com", "gοοgle.com", "micrоsoft.de", "paypal०.com", "paypa١.com", "µtorrent.com", "ӓpple.com"],
    "mixed, Japanese": ["example.comノlogin.evil.jp", "com丶evil.cn", "g〇〇gle.com"],
    "letters of phonetics": ["ɡoogle.com", "pɑypal.com", "ᴘᴀʏᴘᴀʟ.com", "facebᴏᴏk.com", "ƽony.com", "sparkɑsse-köln.de"],
    "dotless i": ["paypaı.com", "googıe.com", "twıtter.com", "appıe.com", "gmaiı.com", "aıipay.com", "kıarna.com"]
    + ["appıe-support.com", "teıekom.com.tr"],
    "dot above": ["wi̇kipedia.org", "wıkı\u0307.org"],
    "other living Latin letters": ["payþal.com", "ƒacebook.com", "paypaɩ.com", "ʋber.com"],
    "full width": ["ｅｘａｍｐｌｅ.net", "ｐaypal.com", "paypal．com", "１and１.com"],
    "compatibility letters": ["𝐩𝐚𝐲𝐩𝐚𝐥.com", "ⅿicrosoft.com", "\u212aelvin.com", "①and①.com", "ﬁdelity.com"],
    "no A-labels": ["xn--paypal-.com", "xn--aypal-wr33a.com"],
    "punctuation": ["paypal.com⁄login.evil.com", "paypal.com∕x.evil.com", "a‐b.com", "a꞉b.com"],
}
ORDINARY = {
    "ASCII": ["example.com", "paypal.com", "rnicrosoft.com", "g00gle.com", "xn--.com", "[192.0.2.1]", "", "localhost"],
    "German": ["münchen.example", "MÜNCHEN.de", "straße.de", "faß.de", "mu\u0308nchen.de", "xn--mnchen-3ya.example"],
    "French": ["œuvre.fr", "hôtel-élysée.fr", "ŒUVRE.fr", "garçon.com"],
    "Turkish": ["ışık.com.tr", "sarı.com", "altın.com", "kapıcı.com.tr", "sarıoğlu.com", "kıbrıs.com", "sınav.com"]
    + ["yapıonline.com", "sarıev.com.tr", "yıldızlı.com", "fırsat-dünyası.com", "alışveriş.com"],
    "Azerbaijani": ["qızıl.az", "bakı.az", "azərbaycan.com"],
    "Polish": ["łódź.pl", "gęślą-jaźń.pl", "źdźbło.com"],
    "Vietnamese": ["đặng.vn", "phởngon.vn", "tiếngviệt.vn", "sơn.vn", "nước.com"],
    "Danish, Icelandic": ["smørrebrød.dk", "æble.dk", "þjóð.is", "alþingi.is", "þór.com"],
    "Hungarian, Romanian, Czech": ["győr.hu", "iași.ro", "žluťoučký-kůň.cz"],
    "Greek": ["αθήνα.gr", "ελλάδα.gr", "νερό.gr", "ῥόδος.gr", "καφές.com", "τυρί.com", "ΑΘΗΝΑ.gr", "παράδειγμα.ελ"],
    "Russian": ["москва.com", "саша.com", "рыба.com", "бургер.com", "груша.com", "почта.рф", "роса.рф", "про.рф"]
    + ["ёлка.com", "серёга.com", "МОСКВА.рф", "пример.испытание"],
    "Ukrainian, Bulgarian, Serbian": ["київ.укр", "їжа.com", "софия.бг", "београд.срб"],
    "Japanese": [
        "日本語.jp",
        "ラーメン.jp",
        "eノート.jp",
        "ノート.jp",
        "tokyo駅.jp",
        "ひらがな.com",
        "佐々木.jp",
        "〇〇.jp",
    ]
    + ["日本語。jp", "ﾗｰﾒﾝ.jp"],
    "Chinese": ["中国.cn", "北京大学.中国", "vip会员.cn", "例子。中国", "一二三.com", "ㄅㄆ注音.tw"],
    "Korean": ["한국.kr", "k팝.kr"],
    "Armenian, Georgian": ["երևան.am", "հայաստան.com", "საქართველო.ge"],
    "Hebrew, Arabic": ["ישראל.co.il", "שלום.com", "مصر.com", "موقع.مصر", "بنك٢٠.com", "ایران۱۲.com"],
    "Indic, Thai": ["भारत.com", "தமிழ்.com", "ไทย.com", "മലയാളം.com", "বাংলা.com"],
    "emoji": ["i❤.ws", "☃.net"],
}


def _cases(kinds: dict[str, list[str]]) -> list[Any]:
    return [
        pytest.param(host, id=f"{kind}-{host.encode('punycode').decode()}") for kind in kinds for host in kinds[kind]
    ]


@pytest.mark.parametrize("host", _cases(LOOK_ALIKES))
def test_look_alikes_are_found(host: str) -> None:
    assert looks_alike(host)


@pytest.mark.parametrize("host", _cases(ORDINARY))
def test_ordinary_domains_raise_no_alarm(host: str) -> None:
    assert not looks_alike(host)
    assert not looks_alike(to_ascii(host))


@given(st.text(max_size=20), st.sampled_from(["com", "рф", "gr", ""]))
def test_no_name_raises(label: str, top: str) -> None:
    for host in (f"{label}.{top}", f"xn--{label}.{top}", label):
        looks_alike(host)


@pytest.mark.parametrize("host", ["paypaı.com", "pɑypal.com", "payþal.com", "аррӏе.com", "ꓐꓮꓠꓗ.com", "ᎪᏢᏢᏞᎬ.com"])
def test_a_recipients_domain_that_looks_like_another_keeps_its_a_labels(host: str) -> None:
    encoded = to_ascii(host)
    assert encoded.startswith("xn--")
    assert shown_address(f"a@{encoded}") == f"a@{encoded}"


@pytest.mark.parametrize(
    "host", ["ışık.com.tr", "sarı.com", "œuvre.fr", "đặng.vn", "αθήνα.gr", "москва.com", "佐々木.jp"]
)
def test_a_recipients_ordinary_domain_has_its_letters(host: str) -> None:
    assert shown_address(f"a@{to_ascii(host)}") == f"a@{host}"


@pytest.mark.parametrize(
    ("header_from", "warned"),
    [
        ("PayPal <service@paypaı.com>", True),
        ("ABB <info@АВВ.com>", True),  # capitals are shown as they were written
        ("Example <a@ｅｘａｍｐｌｅ.net>", True),
        ("Işık <info@ışık.com.tr>", False),
        ("佐々木 <info@佐々木.jp>", False),
        ("Œuvre <info@œuvre.fr>", False),
        ("Саша <a@example.com>", False),
    ],
)
def test_a_look_alike_sender_is_warned_of(header_from: str, warned: bool) -> None:
    assert (sender_shown(delivery(header_from=header_from).message).warning == LOOKS_ALIKE) is warned


# ---- the generated data


def test_the_data_names_its_version_and_its_licence() -> None:
    source = Path(confusables.__file__).read_text("ascii")
    assert re.fullmatch(r"\d+\.\d+\.\d+", confusables.UNICODE_VERSION)
    assert f"Unicode {confusables.UNICODE_VERSION}" in source
    assert "tools/confusables.py" in source
    assert "SPDX-License-Identifier: Unicode-3.0" in source
    assert "UNICODE LICENSE V3" in (ROOT / "LICENSE-UNICODE").read_text("utf-8")
    assert len(source) < 32_000


def test_prototypes_are_ascii_and_their_characters_are_not() -> None:
    seen: set[str] = set()
    for prototype, characters in confusables.PROTOTYPES.items():
        assert prototype.isascii() and prototype and prototype == prototype.lower()
        assert not any(c.isascii() for c in characters)
        assert not seen & set(characters)
        seen |= set(characters)
        # These are found without the table.
        assert not [c for c in characters if unicodedata.normalize("NFKC", c).isascii()]
    assert set(confusables.LIVING_LATIN) <= seen
    for prototype, characters in {"a": "аαɑᎪ", "o": "оοօⲟ", "l": "ӏ", "i": "ıіι", "u": "ս", "/": "ノ"}.items():
        assert set(characters) <= set(confusables.PROTOTYPES[prototype]), prototype


def test_letters_of_ordinary_words_are_left_out() -> None:
    table = "".join(confusables.PROTOTYPES.values())
    assert not set("æœơшбßäöüéłđøåñçşğвдклмнтц") & set(table)


def test_ranges_of_scripts_are_sorted_and_do_not_overlap() -> None:
    ends = [0x7A]  # ASCII letters are the first range
    ranges = sorted(
        (ord(first), ord(last), script)
        for script, text in confusables.SCRIPTS.items()
        for first, last in zip(text[::2], text[1::2], strict=True)
    )
    assert ranges[0] == (0x41, 0x5A, "Latin") and ranges[1] == (0x61, 0x7A, "Latin")
    for first, last, _ in ranges[2:]:
        assert ends[-1] < first <= last
        ends.append(last)
    assert {"Latin", "Greek", "Cyrillic", "Armenian", "Cherokee", "Han", "Hiragana", "Katakana"} <= set(
        confusables.SCRIPTS
    )
    assert not {"Common", "Inherited"} & set(confusables.SCRIPTS)


def _write_input(folder: Path) -> None:
    (folder / "confusables.txt").write_text(
        "\ufeff# confusables.txt\n# Version: 99.0.0\n"
        "0430 ;\t0061 ;\tMA\t# ( а → a ) CYRILLIC SMALL LETTER A → LATIN SMALL LETTER A\t#\n"
        "0410 ;\t0041 ;\tMA\t#\n"
        "0431 ;\t0036 ;\tMA\t# a digit\n"
        "0454 ;\t03B5 ;\tMA\t# not ASCII\n"
        "0131 ;\t0069 ;\tMA\t#\n"
        "00E6 ;\t0061 0065 ;\tMA\t# a living letter for two\n"
        "0251 ;\t0061 ;\tMA\t#\n"
        "FF41 ;\t0061 ;\tMA\t# NFKC\n"
        "2044 ;\t002F ;\tMA\t#\n"
        "0022 ;\t0027 0027 ;\tMA\t# ASCII\n"
    )
    (folder / "Scripts.txt").write_text(
        "# Scripts-99.0.0.txt\n0041..005A ; Latin # x\n0061..007A ; Latin\n00E6 ; Latin\n0131 ; Latin\n0251 ; Latin\n"
        "0400..0484 ; Cyrillic\n0487..052F ; Cyrillic\n2044 ; Common\n0301 ; Inherited\nFF41 ; Latin\n"
    )
    (folder / "IdentifierType.txt").write_text(
        "# IdentifierType.txt\n# Version: 99.0.0\n00E6 ; Recommended\n0131 ; Recommended\n0251 ; Technical\n"
        "FF41 ; Not_NFKC\n0410..0454 ; Recommended\n"
    )


def _generate(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/confusables.py"), str(folder), str(folder / "out.py")]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_script_writes_the_data_from_unicodes_files(tmp_path: Path) -> None:
    _write_input(tmp_path)
    done = _generate(tmp_path)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = {}
    exec((tmp_path / "out.py").read_text("ascii"), found)
    assert found["UNICODE_VERSION"] == "99.0.0"
    prototypes = found["PROTOTYPES"]
    assert isinstance(prototypes, dict)
    assert set(prototypes["a"]) == {"а", "А", "ɑ"}
    assert "ı" in prototypes["i"] and "⁄" in prototypes["/"]
    assert "ь" in prototypes["b"]  # what the script adds
    assert not {"ae", "6", "''"} & set(prototypes)
    assert "ı" in str(found["LIVING_LATIN"]) and "ɑ" not in str(found["LIVING_LATIN"])
    scripts = found["SCRIPTS"]
    assert isinstance(scripts, dict)
    assert scripts["Cyrillic"] == "\u0400\u052f"  # unassigned characters in between are included
    ruff = subprocess.run([Path(sys.executable).parent / "ruff", "format", "--diff", tmp_path / "out.py"], cwd=ROOT)
    assert ruff.returncode == 0


def test_the_script_refuses_files_of_different_versions(tmp_path: Path) -> None:
    _write_input(tmp_path)
    path = tmp_path / "Scripts.txt"
    path.write_text(path.read_text().replace("99.0.0", "98.0.0"))
    done = _generate(tmp_path)
    assert done.returncode != 0
    assert "98.0.0" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.py").exists()
