variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "gpu_class" {
  description = "Class of the pool's GPUs, as `resources.gpu` of a model.yaml says it, such as l4 or h100."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,15}$", var.gpu_class))
    error_message = "A GPU class has up to 16 lower-case letters, digits and hyphens, such as l4."
  }
}

variable "machines" {
  description = "Instance types with a GPU of this class: how many at most on demand and as spot, and their prices in dollars an hour, by which the control plane orders them; a type without a price comes last."
  type = map(object({
    on_demand           = optional(number, 0)
    spot                = optional(number, 0)
    price_per_hour      = optional(number)
    spot_price_per_hour = optional(number)
  }))

  validation {
    condition     = length(var.machines) > 0 && alltrue([for type in keys(var.machines) : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))])
    error_message = "Name at least one instance type, such as g6.xlarge."
  }

  validation {
    condition     = alltrue([for it in values(var.machines) : it.on_demand >= 0 && it.spot >= 0 && it.on_demand + it.spot > 0])
    error_message = "Each instance type is allowed at least one machine, on demand or as spot."
  }
}

variable "vpc_id" {
  description = "The VPC it lives in."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of its machines: the more zones, the more places to find a GPU."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0
    error_message = "Machines need at least one subnet."
  }
}

variable "control_plane" {
  description = "What the module control_plane gives as `for_nodes`."
  type = object({
    url                    = string
    port                   = number
    dial_security_group_id = string
    security_group_id      = string
    token_secret_arn       = string
  })
}

variable "worker_image" {
  description = "The image of workers, `registry/name:tag` or `@sha256:…`."
  type        = string

  validation {
    condition     = can(regex("^[^\\s']+(:[^\\s:/']+|@sha256:[0-9a-f]{64})$", var.worker_image)) && !endswith(var.worker_image, ":latest")
    error_message = "Name the image with a tag other than latest, or with its digest: what runs has to be known."
  }
}

variable "worker_repository_arn" {
  description = "The repository that it is pulled from."
  type        = string
}

variable "node_package" {
  description = "What the module storage gives as `node_package`: the code of the machines."
  type = object({
    url    = string
    sha256 = string
  })

  validation {
    condition     = startswith(var.node_package.url, "s3://") && can(regex("^[0-9a-f]{64}$", var.node_package.sha256))
    error_message = "The node package is an s3:// address with its SHA-256."
  }
}

variable "weights_bucket_arn" {
  description = "Bucket of weights and of the node package."
  type        = string
}

variable "further_bucket_arns" {
  description = "Other buckets that models may be read from."
  type        = list(string)
  default     = []
}

variable "kms_key_arn" {
  description = "Key that encrypts the weights and the node token."
  type        = string
}

variable "ami_ssm_parameter" {
  description = "Public parameter of Systems Manager that names the AMI: NVIDIA's driver and container toolkit, containerd, Python and the AWS command line have to be in it. It is read when Terraform runs."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"

  validation {
    condition     = startswith(var.ami_ssm_parameter, "/")
    error_message = "A parameter's name begins with a slash."
  }
}

variable "root_volume" {
  description = "The volume that keeps images over a stop: its device as the AMI names it, GiB, IO operations and MiB a second."
  type = object({
    device    = optional(string, "/dev/sda1")
    gib       = optional(number, 200)
    iops      = optional(number, 4000)
    mib_per_s = optional(number, 500)
  })
  default = {}

  validation {
    condition     = var.root_volume.gib >= 50 && var.root_volume.iops >= 3000 && var.root_volume.mib_per_s >= 125
    error_message = "gp3 begins at 3000 operations and 125 MiB a second, and images need 50 GiB."
  }
}

variable "settings" {
  description = "Further settings of node agents and snapshotters (`PLATFORM_NODE_…`, `PLATFORM_SNAPSHOTTER_…`); nothing secret."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name, value in var.settings : can(regex("^PLATFORM_(NODE|SNAPSHOTTER)_[A-Z_]+$", name)) && !can(regex("['\\n\\\\]", value))])
    error_message = "Settings of machines begin with PLATFORM_NODE_ or PLATFORM_SNAPSHOTTER_ and have no quotes, backslashes or line breaks."
  }
}

variable "launch_timeout_s" {
  description = "Seconds a machine may take until it is really ready, between signs of life of its agent; after them it is given up."
  type        = number
  default     = 300

  validation {
    condition     = var.launch_timeout_s >= 60 && var.launch_timeout_s <= 7200
    error_message = "AWS allows 30 to 7200 s; a GPU machine boots for longer than 60."
  }
}

variable "orphan_after_s" {
  description = "Seconds after which the control plane ends a machine that bears this deployment's tags and is in none of its groups."
  type        = number
  default     = 86400

  validation {
    condition     = var.orphan_after_s >= 600
    error_message = "A machine that has just been launched is no orphan: allow 600 s."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
