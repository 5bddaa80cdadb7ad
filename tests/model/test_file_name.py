"""Names of downloaded files."""

import pytest

from portal.model.file_name import disposition, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("invoice.pdf", "invoice.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\system32\\cmd.exe", "cmd.exe"),
        ("..\\/", "file"),
        ("...", "file"),
        ("", "file"),
        (".htaccess", "htaccess"),
        ("report.pdf. . .", "report.pdf"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("in\u200bvoice\r\nSet-Cookie: x=1.pdf", "invoice Set-Cookie_ x=1.pdf"),
        ("a\x00b\x1f.txt", "ab.txt"),
        ("report.pdf:evil.exe", "report.pdf_evil.exe"),
        ('a"b<c>d|e?f*g.txt', "a_b_c_d_e_f_g.txt"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("com1.tar.gz", "_com1.tar.gz"),
        ("LPT³", "_LPT³"),
        ("console.txt", "console.txt"),
        ("請求書.pdf", "請求書.pdf"),
    ],
)
def test_a_name_is_safe_in_every_folder(name: str, safe: str) -> None:
    assert safe_name(name, "file") == safe


def test_a_long_name_keeps_its_ending() -> None:
    safe = safe_name("ü" * 5_000 + ".pdf", "file")
    assert safe.endswith("ü.pdf") or len(safe) <= 150
    assert len(safe.encode()) <= 150
    assert safe_name("字" * 60 + ".docx", "file").endswith("字.docx")
    assert len(safe_name("x." + "y" * 300, "file")) == 150


def test_the_header_names_the_file_for_old_and_new_browsers() -> None:
    assert disposition("Rechnung 5%41.pdf") == (
        "attachment; filename=\"Rechnung 5_41.pdf\"; filename*=UTF-8''Rechnung%205%2541.pdf"
    )
    assert disposition('ä"\\.pdf') == "attachment; filename=\"___.pdf\"; filename*=UTF-8''%C3%A4%22%5C.pdf"
