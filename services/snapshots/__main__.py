"""python -m services.snapshots"""

from chassis import run  # first: it patches
from services.snapshots.service import Snapshots
from services.snapshots.settings import SnapshotsSettings

if __name__ == "__main__":
    run.serve(Snapshots, SnapshotsSettings, "services.snapshots")
