variable "region" {
  description = "AWS region."
  type        = string
  default     = "us-east-1"
}

variable "name" {
  description = "Name of the deployment; everything made here begins with it."
  type        = string
  default     = "firstlight"
}

variable "allowed_cidrs" {
  description = "Who may call the API, as blocks of IPv4 addresses, such as your own: 203.0.113.7/32."
  type        = set(string)
}

variable "certificate_arn" {
  description = "Certificate of the API's address in ACM; without a domain of your own one that you signed yourself."
  type        = string
}

variable "image_version" {
  description = "Tag under which the images of the control plane and of workers are pushed."
  type        = string
  default     = "0.1.0"
}

variable "node_package" {
  description = "Path of the archive that `scripts/node-package` made."
  type        = string
  default     = "../../../build/firstlight-node.tar.gz"
}

variable "gpu_class" {
  description = "Class of the GPUs, as model.yaml says it."
  type        = string
  default     = "l4"
}

variable "machines" {
  description = "Instance types, how many of each at most, and dollars an hour (us-east-1, 2026)."
  type = map(object({
    on_demand           = optional(number, 0)
    spot                = optional(number, 0)
    price_per_hour      = optional(number)
    spot_price_per_hour = optional(number)
  }))
  default = {
    "g6.xlarge" = { on_demand = 2, price_per_hour = 0.8048 }
  }
}

variable "ami_ssm_parameter" {
  description = "Parameter of Systems Manager that names the machines' AMI."
  type        = string
  default     = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
}
