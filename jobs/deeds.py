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
    "logs": "jobs.logs.logs",
    "cancel": "jobs.control.cancel",
    "drill": "jobs.drill.drill",
}
