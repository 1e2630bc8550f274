"""Views over the processes of a device mesh, and the operators on tensors sharded over one.

Every wrapper takes ``mesh=``, one axis of a ``DeviceMesh`` or a process group: each process runs its share of the
views; see ``Ranks``, and ``docs/guides/distributed.md`` for a whole program. Layers and ``equikern.rl`` take none.
Importing this module also tells DTensor how each operator is run where tensors are sharded; see ``sharding``.
"""

from . import sharding
from .ranks import Ranks

__all__ = ["Ranks", "sharding"]
