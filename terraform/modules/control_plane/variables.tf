variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,19}$", var.name))
    error_message = "The name has 2 to 20 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "vpc_id" {
  description = "The VPC it lives in."
  type        = string
}

variable "private_subnet_ids" {
  description = "Subnets of its tasks and of the address that GPU machines dial."
  type        = list(string)

  validation {
    condition     = length(var.private_subnet_ids) >= 2
    error_message = "Subnets in two zones at least are needed."
  }
}

variable "public_subnet_ids" {
  description = "Subnets of the load balancer that the internet reaches; unused where `is_internal`."
  type        = list(string)
  default     = []

  validation {
    condition     = var.is_internal || length(var.public_subnet_ids) >= 2
    error_message = "A load balancer that the internet reaches needs public subnets in two zones at least."
  }
}

variable "is_internal" {
  description = "Whether only machines of the VPC, and what is connected with it, reach the API."
  type        = bool
  default     = false
}

variable "allowed_cidrs" {
  description = "Who may call the API, as blocks of IPv4 addresses. Everybody has to be said: 0.0.0.0/0."
  type        = set(string)

  validation {
    condition     = length(var.allowed_cidrs) > 0 && alltrue([for it in var.allowed_cidrs : can(cidrhost(it, 0))])
    error_message = "Say who may call, such as 203.0.113.0/24."
  }
}

variable "certificate_arn" {
  description = "Certificate of the API's address in ACM; null requests one for `domain`."
  type        = string
  default     = null

  validation {
    condition     = var.certificate_arn != null || var.domain != null
    error_message = "HTTPS needs a certificate: name one of ACM, or a domain with its hosted zone."
  }
}

variable "domain" {
  description = "The API's address, with the hosted zone of Route 53 it is made in; null takes the load balancer's own name."
  type = object({
    name    = string
    zone_id = string
  })
  default = null

  validation {
    condition     = var.domain == null || can(regex("^[a-z0-9-]+(\\.[a-z0-9-]+)+$", var.domain.name))
    error_message = "A domain looks like inference.example.org."
  }
}

variable "image" {
  description = "The control plane's image, `registry/name:tag` or `@sha256:…`."
  type        = string

  validation {
    condition     = can(regex("^[^\\s]+(:[^\\s:/]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "Name the image with a tag other than latest, or with its digest: what runs has to be known."
  }
}

variable "image_repository_arn" {
  description = "The repository that it is pulled from."
  type        = string
}

variable "cpu" {
  description = "Thousand-and-twenty-fourths of a core of each task, as Fargate sells them."
  type        = number
  default     = 1024

  validation {
    condition     = contains([512, 1024, 2048, 4096], var.cpu)
    error_message = "Fargate sells 512, 1024, 2048 and 4096 (of those that make sense)."
  }
}

variable "memory_mib" {
  description = "Memory of each task in MiB; held requests and answers of jobs are in it."
  type        = number
  default     = 2048

  validation {
    condition     = var.memory_mib >= var.cpu * 2 && var.memory_mib <= var.cpu * 8 && var.memory_mib % 1024 == 0
    error_message = "Fargate sells whole GiB, from twice to eight times the cpu's number."
  }
}

variable "tasks" {
  description = "Control planes that run: one leads, a second one takes over within 13 s."
  type        = number
  default     = 2

  validation {
    condition     = contains([1, 2, 3], var.tasks)
    error_message = "One leads and the others wait: run one, two or three."
  }
}

variable "state" {
  description = "The state store: the secret with its address, its security group, its port, and whether it keeps what it acknowledged."
  type = object({
    url_secret_arn    = string
    security_group_id = string
    port              = number
    is_durable        = bool
  })
}

variable "secret_arns" {
  description = "Secrets with the admin's key (`api-key`) and with what node agents show (`node-token`)."
  type        = map(string)

  validation {
    condition     = toset(keys(var.secret_arns)) == toset(["api-key", "node-token"])
    error_message = "Two secrets are needed: api-key and node-token."
  }
}

variable "results_bucket" {
  description = "Bucket for large results of jobs."
  type = object({
    name = string
    arn  = string
  })
}

variable "weights_bucket_arn" {
  description = "Bucket of weights; the control plane reads names and sizes when a model is deployed."
  type        = string
}

variable "logs_bucket" {
  description = "Bucket for the load balancer's access logs."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts secrets, logs and the queue."
  type        = string
}

variable "settings" {
  description = "Further settings of the platform, such as `PLATFORM_STANDBY_MAX`; nothing secret."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : startswith(name, "PLATFORM_")])
    error_message = "Settings of the platform begin with PLATFORM_."
  }
}

variable "idle_timeout_s" {
  description = "Seconds without a byte after which the load balancer gives a request up; a held request sends progress every few seconds only where it is asked for it."
  type        = number
  default     = 1200

  validation {
    condition     = var.idle_timeout_s >= 60 && var.idle_timeout_s <= 4000
    error_message = "Load balancers allow up to 4000 s; less than 60 cuts off cold starts."
  }
}

variable "log_days" {
  description = "Days that the control plane's log is kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([7, 14, 30, 60, 90, 180, 365], var.log_days)
    error_message = "CloudWatch keeps logs for 7, 14, 30, 60, 90, 180 or 365 days."
  }
}

variable "web_acl_arn" {
  description = "A WAF's web ACL for the load balancer; null has none."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Whether the load balancers refuse `terraform destroy`."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}
}
