# Random secrets that are drawn while Terraform runs and written to Secrets Manager only: neither the plan nor the state
# has them. Terraform's tests cannot make up what is ephemeral yet, so nothing else is in this module.
ephemeral "aws_secretsmanager_random_password" "drawn" {
  for_each = var.secrets

  password_length     = 48
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57:`generation` draws new ones in one apply; a rotation by itself would lock clients and machines out
  for_each = var.secrets

  name                    = "${var.name}/${each.key}"
  description             = each.value
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = var.recovery_days
  tags                    = var.tags
}

resource "aws_secretsmanager_secret_version" "this" {
  for_each = aws_secretsmanager_secret.this

  secret_id                = each.value.id
  secret_string_wo         = ephemeral.aws_secretsmanager_random_password.drawn[each.key].random_password
  secret_string_wo_version = var.generation
}
