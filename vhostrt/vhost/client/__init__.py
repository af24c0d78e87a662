"""The front end's side of vhost-user: what a virtual machine monitor does, for clients of ours."""
