# Two ways in: HTTPS for clients, and an address inside the VPC that GPU machines dial. Both send to the one that leads,
# for the others' /readyz is 503.
resource "aws_security_group" "api" {
  name_prefix = "${var.name}-api-"
  description = "The API as clients reach it"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-api" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "api" {
  for_each = var.allowed_cidrs

  security_group_id = aws_security_group.api.id
  description       = "HTTPS of clients"
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "api" {
  security_group_id            = aws_security_group.api.id
  description                  = "To the control plane"
  referenced_security_group_id = aws_security_group.tasks.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
  tags                         = var.tags
}

resource "aws_lb" "api" {
  #checkov:skip=CKV_AWS_150:deletion_protection is a variable: `terraform destroy` has to leave nothing behind
  #checkov:skip=CKV2_AWS_76:A WAF is the operator's to choose (web_acl_arn), and nothing here is Java
  #checkov:skip=CKV2_AWS_28:A WAF is the operator's to choose (web_acl_arn)
  name                       = "${var.name}-api"
  internal                   = var.is_internal
  load_balancer_type         = "application"
  security_groups            = [aws_security_group.api.id]
  subnets                    = var.is_internal ? var.private_subnet_ids : var.public_subnet_ids
  idle_timeout               = var.idle_timeout_s
  drop_invalid_header_fields = true
  desync_mitigation_mode     = "defensive"
  enable_deletion_protection = var.deletion_protection
  tags                       = var.tags

  access_logs {
    bucket  = var.logs_bucket
    prefix  = "alb"
    enabled = true
  }
}

resource "aws_wafv2_web_acl_association" "api" {
  count = var.web_acl_arn == null ? 0 : 1

  resource_arn = aws_lb.api.arn
  web_acl_arn  = var.web_acl_arn
}

resource "aws_lb_target_group" "api" {
  #checkov:skip=CKV_AWS_378:The control plane speaks HTTP inside the VPC, from its load balancer's security group only
  name                 = "${var.name}-api"
  port                 = local.port
  protocol             = "HTTP"
  target_type          = "ip"
  vpc_id               = var.vpc_id
  deregistration_delay = local.drain_s
  tags                 = var.tags

  health_check {
    path                = "/readyz"
    matcher             = "200"
    interval            = 5
    timeout             = 3
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "api" {
  load_balancer_arn = aws_lb.api.arn
  port              = 443
  protocol          = "HTTPS"
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = var.certificate_arn != null ? var.certificate_arn : aws_acm_certificate_validation.api[0].certificate_arn
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.api.arn
  }
}

resource "aws_security_group" "dial" {
  name_prefix = "${var.name}-dial-"
  description = "The address that GPU machines dial; each pool adds itself"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = "${var.name}-dial" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_egress_rule" "dial" {
  security_group_id            = aws_security_group.dial.id
  description                  = "To the control plane"
  referenced_security_group_id = aws_security_group.tasks.id
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
  tags                         = var.tags
}

resource "aws_lb" "dial" {
  #checkov:skip=CKV_AWS_150:deletion_protection is a variable: `terraform destroy` has to leave nothing behind
  #checkov:skip=CKV_AWS_91:Network load balancers log TLS connections only, and this one has none; flow logs have the others
  name                             = "${var.name}-dial"
  internal                         = true
  load_balancer_type               = "network"
  security_groups                  = [aws_security_group.dial.id]
  subnets                          = var.private_subnet_ids
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
  tags                             = var.tags
}

resource "aws_lb_target_group" "dial" {
  name                   = "${var.name}-dial"
  port                   = local.port
  protocol               = "TCP"
  target_type            = "ip"
  vpc_id                 = var.vpc_id
  preserve_client_ip     = false
  deregistration_delay   = 10
  connection_termination = true # agents dial again at once, and reach the new leader
  tags                   = var.tags

  health_check {
    protocol            = "HTTP"
    path                = "/readyz"
    matcher             = "200"
    interval            = 5
    timeout             = 3
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "dial" {
  load_balancer_arn = aws_lb.dial.arn
  port              = local.port
  protocol          = "TCP"
  tags              = var.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.dial.arn
  }
}
