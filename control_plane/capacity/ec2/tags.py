"""The tags by which groups and instances are known as ours; `terraform/` sets them.

They stand on Auto Scaling groups and are propagated to instances. Names of groups mean nothing.
"""

from typing import Final

DEPLOYMENT: Final = "firstlight:deployment"  # whose they are: PLATFORM_EC2_DEPLOYMENT
GPU_CLASS: Final = "firstlight:gpu-class"  # as `resources.gpu` names it, or `cpu`
PURCHASE: Final = "firstlight:purchase"  # `on-demand` or `spot`
INSTANCE_TYPE: Final = "firstlight:instance-type"
PRICE_PER_HOUR: Final = "firstlight:price-per-hour"  # USD; a group without it comes last
TTL_S: Final = "firstlight:ttl-s"  # how long an instance may belong to no group of ours
