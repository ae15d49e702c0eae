"""Which function does what a verb asks for."""

# Verb: the function that does it, imported only when it is needed, so that `--help` is quick.
DOES = {
    "world": "agl_core.world.dataset.render_world",
    "prepare": "agl_core.data.prepare.ingest.prepare",
    "augment": "agl_core.data.augment.sheet.augment",
    "recipe": "jobs.recipes.recipe",
    "weights": "agl_core.model.imagenet.weights",
    "fit": "jobs.fit.fit",
    "predict": "jobs.predictions.predict",
    "ensemble": "agl_core.inference.ensemble.ensemble",
    "evaluate": "agl_core.scoring.evaluate.evaluate",
    "rectify": "agl_core.maps.rectify.rectify",
    "quicklook": "agl_core.maps.quicklook.quicklook",
    "export": "agl_core.export.export.export",
    "report": "jobs.reports.report",
    "status": "jobs.status.status",
    "watch": "jobs.watch.watch",
    "doctor": "jobs.doctor.doctor.doctor",
    "plan": "jobs.planning.plan.plan",
    "logs": "jobs.logs.logs",
    "cancel": "jobs.control.cancel",
    "resume": "jobs.control.resume",
    "drill": "jobs.drill.drill",
}

CLUSTER_KEYS = ("resume", "doctor", "plan")
"""What also takes keys of the cluster configuration (cluster.partition=...), as a second argument."""
