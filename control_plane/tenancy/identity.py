"""Who a request comes from, as its key says and nothing else in it."""

from dataclasses import dataclass

from infra.contracts.revision import Revision
from infra.contracts.tenancy import DEFAULT_TENANT, TenantName
from infra.errors import Forbidden


@dataclass(frozen=True, slots=True)
class Identity:
    """A tenant; an admin may do everything to everybody's models."""

    tenant: TenantName
    is_admin: bool = False

    def owns(self, revision: Revision) -> bool:
        """Whether it may see, change and take away what the revision's model is and says."""
        return self.is_admin or revision.tenant == self.tenant

    def may_call(self, revision: Revision) -> bool:
        """Whether it may send requests to the revision's model, and know that there is one."""
        return self.owns(revision) or revision.spec.shared

    def require_admin(self) -> None:
        """Raises Forbidden."""
        if not self.is_admin:
            raise Forbidden("an admin's key is needed", hint="ask who runs the platform")


# Whoever has the root key, and everybody where no key is asked for.
OPERATOR = Identity(DEFAULT_TENANT, is_admin=True)
