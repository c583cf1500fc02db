"""What a job will take, before anything is started: memory, time and cost by model and GPU. Imports no torch."""
