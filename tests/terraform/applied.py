"""The minimal example, byte for byte, made in an account of moto by the commands of the page."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import require
from tests.terraform.account import AMI, Account, an_account
from tests.terraform.page import block_of
from tests.terraform.tool import ROOT, Terraform


@dataclass(frozen=True)
class Applied:
    """What `terraform apply` made, the state it keeps, and what was in the account before."""

    account: Account
    terraform: Terraform
    state: Path
    before: dict[str, list[str]]

    @property
    def outputs(self) -> dict[str, Any]:
        return self.terraform.outputs()

    def group(self) -> dict[str, Any]:
        groups = self.account.client("autoscaling").describe_auto_scaling_groups()
        (group,) = groups["AutoScalingGroups"]
        return dict(group)

    def told(self) -> dict[str, str]:
        """The settings in the control plane's task definition."""
        return {it["name"]: it["value"] for it in self.container()["environment"]}

    def container(self) -> dict[str, Any]:
        ecs = self.account.client("ecs")
        (arn,) = ecs.list_task_definitions()["taskDefinitionArns"]
        task = ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]
        (container,) = task["containerDefinitions"]
        return dict(container)


def apply(terraform: Terraform, folder: Path, stack: ExitStack) -> Applied:
    """As docs/cloud.md says it, in a fresh account, which `stack` closes."""
    for program in ("aws", "openssl"):
        require(shutil.which(program), f"{program}, which docs/cloud.md uses,")
    tree = folder / "terraform"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".terraform*"))
    package = folder / "build" / "firstlight-node.tar.gz"
    package.parent.mkdir()
    package.write_bytes(b"not what scripts/node-package makes")
    example = tree / "examples" / "minimal"
    account = stack.enter_context(an_account())
    config = {"XDG_CONFIG_HOME": str(folder / "config"), "TF_VAR_ami_ssm_parameter": AMI}
    here = terraform.inside(example, folder / "data", **account.environment, **config)
    before = account.inventory()
    here.shell(block_of("openssl").script)
    here.shell(block_of("printf 'certificate_arn").script, seconds=600)
    return Applied(account, here, example / "terraform.tfstate", before)
