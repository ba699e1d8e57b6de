"""What is in deploy/: the chart, the images, the alerts, the dashboard. ``make test-deploy`` runs all of it."""
