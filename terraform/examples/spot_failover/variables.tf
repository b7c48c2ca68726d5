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
  description = "Certificate of the API's address in ACM."
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
