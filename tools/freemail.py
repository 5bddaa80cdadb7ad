"""Write `portal/policy/freemail.txt`, the domains at which anybody can get an address.

    npm pack free-email-domains && tar xzf free-email-domains-*.tgz
    python tools/freemail.py package && rm -r package free-email-domains-*.tgz

Run it again for a new version of the package, then `pytest tests/policy/test_entry.py`. The tables below list the
domains that are added or left out by hand; each entry needs a reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from portal.model.domains import to_ascii

OUTPUT = Path(__file__).resolve().parents[1] / "portal/policy/freemail.txt"

# Providers of mailboxes that the list lacks in version 1.12.6.
ADDED = {
    "email.de", "hey.com", "mailbox.org", "murena.io", "onmicrosoft.com", "riseup.net", "simplelogin.com",
    "tutamail.com", "tutanota.com",
}  # fmt: skip

HEAD = """\
# Domains at which anybody can get an address. Written by tools/freemail.py: do not edit.
# From the npm package free-email-domains {version}, with additions of the portal.
#
"""


def main() -> None:
    """Write the list from the unpacked package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the folder of the unpacked npm package")
    folder: Path = parser.parse_args().package
    try:
        version = json.loads((folder / "package.json").read_text("utf-8"))["version"]
        names = json.loads((folder / "domains.json").read_text("utf-8"))
        terms = (folder / "LICENSE.md").read_text("utf-8")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{folder} is not the unpacked package free-email-domains: {error}")
    if not isinstance(names, list) or "gmail.com" not in names:
        sys.exit(f"{folder}/domains.json is not a list of domains")
    domains = sorted({to_ascii(name.strip()) for name in names if name.strip()} | ADDED)
    head = HEAD.format(version=version) + "".join(f"# {line}".rstrip() + "\n" for line in terms.strip().splitlines())
    OUTPUT.write_text(head + "".join(f"{name}\n" for name in domains), "utf-8")


if __name__ == "__main__":
    main()
