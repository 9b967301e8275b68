"""`ovi-studio` whose nodes have fake engines, as a program of its own that tests can kill.

`made` in OVI_STUDIO_HOME collects the seed of every clip that a node has made.
"""

import sys

from ovi_studio.cli import main
from ovi_studio.engine import node
from tests.cluster.engines import noting_engine

if __name__ == "__main__":
    setattr(node, "node_engine", noting_engine)  # noqa: B010  (a fake needs no weights)
    sys.exit(main())
