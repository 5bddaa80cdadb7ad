"""Programs for the development of the portal. They are not part of the wheel."""
