"""The demo: a search index of a source tree, built by hundreds of durable jobs, through a kill -9."""
