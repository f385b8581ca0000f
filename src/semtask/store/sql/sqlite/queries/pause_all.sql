UPDATE queues SET paused = 1
