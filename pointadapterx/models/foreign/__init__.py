"""Models of other libraries, and of users: where methods may act in them."""

from pointadapterx.models.foreign.host import ForeignHost
from pointadapterx.models.foreign.sites import Sites

__all__ = ["ForeignHost", "Sites"]
