"""RabbitMQ users and what each may do."""
