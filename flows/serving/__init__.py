"""What `make ui` serves: deployments with their forms, automations, reports."""
