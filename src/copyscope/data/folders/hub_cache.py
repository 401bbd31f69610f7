"""The Hub's cache of a data set: snapshots, whose files are links to blobs beside them."""

from __future__ import annotations

import dataclasses

from copyscope.data.storage import Listing, Storage, join


def one_snapshot(storage: Storage, root: str, listing: Listing) -> tuple[Listing, dict[str, str]]:
    """Of the Hub's cache of a data set one snapshot, whose files are links to blobs beside it; and what is left out."""
    snapshots = sorted(
        {path.split("/")[1] for path in listing.files if path.startswith("snapshots/") and path.count("/") > 1}
    )
    if not snapshots or not any(path.startswith(("blobs/", "refs/")) for path in listing.files):
        return listing, {}
    wanted = snapshots[-1]
    if "refs/main" in listing.files:
        try:
            named = storage.span(join(root, "refs/main"), 0, 200).decode("utf-8", "replace").strip()
        except Exception:
            named = ""
        wanted = named if named in snapshots else wanted
    prefix = f"snapshots/{wanted}/"
    files = {path: size for path, size in listing.files.items() if path.startswith(prefix)}
    passed = dict.fromkeys(
        (path for path in listing.files if path.startswith("snapshots/")), f"not of the snapshot {wanted[:12]}"
    )
    return dataclasses.replace(listing, files=files, outside=listing.outside & files.keys()), {
        path: why for path, why in passed.items() if path not in files
    }
