"""What moto lacks for our examples: lists of MemoryDB, conditions of bucket policies; and that a
store is deleted at once."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from moto.core.responses import ActionResult
from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.memorydb.exceptions import MemoryDBClientError
from moto.memorydb.responses import MemoryDBResponse


@contextmanager
def closed() -> Iterator[None]:
    """moto's server does without these gaps meanwhile."""
    with ExitStack() as stack:
        for name, operation in _operations().items():
            _set(stack, MemoryDBResponse, name, operation)
        _set(stack, IAMPolicyStatement, "is_action_permitted", _is_permitted())
        yield


def _set(stack: ExitStack, owner: type, name: str, value: Callable[..., Any]) -> None:
    if hasattr(owner, name):
        stack.callback(setattr, owner, name, getattr(owner, name))
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def _is_permitted() -> Callable[..., PermissionResult]:
    """moto refuses whatever a bucket's policy denies, conditions or not. Here every call counts as
    one that came by TLS, which is what ours are about (userguide/example-bucket-policies)."""
    decide = IAMPolicyStatement.is_action_permitted

    def is_action_permitted(statement: Any, *arguments: Any, **named: Any) -> PermissionResult:
        conditions = statement._statement.get("Condition", {})
        if conditions.get("Bool", {}).get("aws:SecureTransport") == "false":
            return PermissionResult.NEUTRAL
        return decide(statement, *arguments, **named)

    return is_action_permitted


def _operations() -> dict[str, Callable[[Any], ActionResult]]:
    """Access control lists as a store and nothing more (API_CreateACL)."""
    acls: dict[str, dict[str, Any]] = {}
    tags: dict[str, list[dict[str, str]]] = {}
    tags_of_others = MemoryDBResponse.list_tags
    delete_now = MemoryDBResponse.delete_cluster

    def create_acl(response: Any) -> ActionResult:
        asked = json.loads(response.body)
        name = asked["ACLName"]
        acls[name] = {
            "Name": name,
            "Status": "active",
            "UserNames": asked["UserNames"],
            "ARN": f"arn:aws:memorydb:{response.region}:{response.current_account}:acl/{name}",
        }
        tags[acls[name]["ARN"]] = asked.get("Tags", [])
        return ActionResult({"ACL": acls[name]})

    def describe_acls(response: Any) -> ActionResult:
        return ActionResult({"ACLs": [known(json.loads(response.body)["ACLName"])]})

    def delete_acl(response: Any) -> ActionResult:
        acl = known(json.loads(response.body)["ACLName"])
        return ActionResult({"ACL": acls.pop(acl["Name"])})

    def delete_cluster(response: Any) -> ActionResult:
        """It goes, and the answer is the one to a call that is repeated because its answer was
        lost: after any other, the provider looks for the first time after five minutes."""
        delete_now(response)
        name = json.loads(response.body)["ClusterName"]
        raise MemoryDBClientError("ClusterNotFoundFault", f"Cluster {name} not found.")

    def list_tags(response: Any) -> ActionResult:
        arn = json.loads(response.body)["ResourceArn"]
        return ActionResult({"TagList": tags[arn]}) if arn in tags else tags_of_others(response)

    def known(name: str) -> dict[str, Any]:
        if name not in acls:
            raise MemoryDBClientError("ACLNotFoundFault", f"ACL {name} not found.")
        return acls[name]

    return {
        "create_acl": create_acl,
        "describe_ac_ls": describe_acls,
        "delete_acl": delete_acl,
        "delete_cluster": delete_cluster,
        "list_tags": list_tags,
    }
