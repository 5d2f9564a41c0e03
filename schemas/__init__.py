"""The data model: errors, specs, episodes, versions, filters. Imports nothing of ours."""
