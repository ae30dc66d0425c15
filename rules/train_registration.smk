# The scans are frozen when the training begins, and a trained network is an input like any other (Jobs.is_left).
if study.jobs.is_left("train_registration"):

    localrules:
        write_training_table,

    rule write_training_table:
        """List the frozen scans of the training: image, mask, affine to the template, labels, and what each is for."""
        input:
            unpack(study.jobs.asks("write_training_table", study.network.files, scans=study.network.scans)),
        output:
            **study.jobs.outputs("write_training_table"),
        log:
            study.jobs.log("write_training_table"),
        conda:
            "../envs/cpu.yaml"
        resources:
            mem_mb=growing(1000),
            runtime=10,
        params:
            proof=study.jobs.proof("write_training_table"),
            images=study.network.lists["images"],
            masks=study.network.lists["masks"],
            affines=study.network.lists["affines"],
            labels=study.network.lists["labels"],
        shell:
            "popatlas step WriteTrainingTable --in_scans {input.scans:q} --in_images @{params.images:q} --in_masks"
            " @{params.masks:q} --in_affines @{params.affines:q} --in_labels @{params.labels:q} --out_table"
            " {output.table:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"

    # A job that stops before the end of the training has left its checkpoint in `folder`, where the next attempt goes on. The
    # Snakemake inside a job of Slurm must not try again: the time of its job is over.
    # `exec`: the signal that ends a job must reach the step, and a shell in between would die of it and take the step along.
    rule train_registration:
        """Train a registration network by the recipe, or go on with its training, until it is done or the time is over."""
        input:
            unpack(study.jobs.asks("train_registration", **study.network.table)),
        output:
            **study.jobs.outputs("train_registration"),
        log:
            study.jobs.log("train_registration"),
        benchmark:
            "benchmarks/train/train_registration.tsv"
        retries: 5 if workflow.is_main_process else 0
        conda:
            "../envs/gpu.yaml" if study.config.train.gpus else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.network.memory(), most=2),
            runtime=720,
            gpu=study.config.train.gpus,
        params:
            proof=study.jobs.proof("train_registration"),
            table=study.network.table_option,
            recipe=study.network.recipe,
            folder=study.network.plan.work_folder,
            minutes=study.network.budget,
        shell:
            "exec popatlas step TrainRegistration --threads {threads} --recipe {params.recipe:q} {params.table} --folder"
            " {params.folder:q} --gpus {resources.gpu} --minutes {params.minutes} --out_weights {output.weights:q}"
            " --out_training {output.training:q} --out_curve {output.curve:q} --out_picture {output.picture:q} {params.proof} --record"
            " {log:q}.json > {log:q} 2>&1"
