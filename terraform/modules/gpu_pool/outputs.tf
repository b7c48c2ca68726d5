output "group_names" {
  description = "The Auto Scaling groups, by instance type and purchase."
  value       = { for key, group in aws_autoscaling_group.this : key => group.name }
}

output "security_group_id" {
  description = "The machines' security group."
  value       = aws_security_group.machines.id
}

output "role_arn" {
  description = "The machines' role."
  value       = aws_iam_role.machine.arn
}

output "user_data" {
  description = "What machines of each group run at their first boot; it has no secrets."
  value       = local.user_data
}
