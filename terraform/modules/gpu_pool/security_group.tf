# The control plane reaches replicas; machines reach it, AWS and hubs of models, and nobody else.
resource "aws_security_group" "machines" {
  name_prefix = "${var.name}-${var.gpu_class}-"
  description = "GPU machines of class ${var.gpu_class}"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-${var.gpu_class}" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "replicas" {
  security_group_id            = aws_security_group.machines.id
  description                  = "The control plane, to replicas on the ports that Linux gives them"
  referenced_security_group_id = var.control_plane.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 32768
  to_port                      = 60999
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "https" {
  security_group_id = aws_security_group.machines.id
  description       = "AWS and hubs of models; the network's nat decides whether there is a way out"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "dial" {
  security_group_id            = aws_security_group.machines.id
  description                  = "The control plane"
  referenced_security_group_id = var.control_plane.dial_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = var.control_plane.port
  to_port                      = var.control_plane.port
  tags                         = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "dial" {
  security_group_id            = var.control_plane.dial_security_group_id
  description                  = "GPU machines of class ${var.gpu_class}"
  referenced_security_group_id = aws_security_group.machines.id
  ip_protocol                  = "tcp"
  from_port                    = var.control_plane.port
  to_port                      = var.control_plane.port
  tags                         = var.tags
}
