"""The update server: which machine gets what, and when. It decides; it cannot forge.

``policy`` decides and is pure, ``store`` keeps channels, groups and machines in SQLite,
``catalogue`` reads what the repository offers, ``service`` answers one Omaha request with those
three, ``app`` puts it on HTTP, and ``run`` runs it. ``admin`` is what the commands call.
"""
