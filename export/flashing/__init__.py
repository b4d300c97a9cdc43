"""Bring a bundle to devices: ``dir:`` a folder or mounted card, ``ssh://`` a board, ``adb:`` a phone; one file each."""
