# A trained network is an input like any other: no rule makes it again (Jobs.is_left).
if study.jobs.is_left("train_trust"):

    rule train_trust:
        """Train the network and the data parameters of the method dataparams, once for the cohort."""
        input:
            unpack(study.jobs.asks("train_trust", study.train.files("trust"), atlases="cohort/trust-atlases.json")),
        output:
            **study.jobs.outputs("train_trust"),
        log:
            study.jobs.log("train_trust"),
        benchmark:
            "benchmarks/train/train_trust.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.dataparams.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.train.memory("trust")),
            runtime=growing(study.train.minutes("trust")),
            gpu=study.config.fuse.dataparams.gpu,
        params:
            proof=study.jobs.proof("train_trust"),
            lists=study.train.lists("trust"),
            settings=study.train.settings("trust"),
        shell:
            "popatlas step TrainDataParameters --threads {threads} --in_labels @{params.lists[labels]} --in_targets"
            " @{params.lists[targets]} --in_dsegs @{params.lists[dsegs]} --scans @{params.lists[scans]} --atlases"
            " @{input.atlases:q} --settings {params.settings:q} --gpu {resources.gpu} --out_network {output.network:q}"
            " --out_parameters {output.parameters:q} --out_curve {output.curve:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.jobs.is_left("train_segmenter"):

    rule train_segmenter:
        """Train the network that labels scans without registration, on fused labels, once for the cohort."""
        input:
            unpack(study.jobs.asks("train_segmenter", study.train.files("segmenter"))),
        output:
            **study.jobs.outputs("train_segmenter"),
        log:
            study.jobs.log("train_segmenter"),
        benchmark:
            "benchmarks/train/train_segmenter.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.segmenter.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.train.memory("segmenter")),
            runtime=growing(study.train.minutes("segmenter")),
            gpu=study.config.fuse.segmenter.gpu,
        params:
            proof=study.jobs.proof("train_segmenter"),
            lists=study.train.lists("segmenter"),
            settings=study.train.settings("segmenter"),
        shell:
            "popatlas step TrainSegmenter --threads {threads} --in_targets @{params.lists[targets]} --in_dsegs"
            " @{params.lists[dsegs]} --scans @{params.lists[scans]} --settings {params.settings:q} --gpu {resources.gpu}"
            " --out_network {output.network:q} --out_curve {output.curve:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.fuse.has_segmenter:

    rule segment_scan:
        """Label a brain with the trained network, without any registration."""
        input:
            unpack(
                study.jobs.asks(
                    "segment_scan",
                    target="{scan}_desc-brain_T1w.nii.gz",
                    network=study.train.file("segmenter", "network.safetensors"),
                )
            ),
        output:
            **study.jobs.outputs("segment_scan"),
        log:
            study.jobs.log("segment_scan"),
        benchmark:
            "benchmarks/fuse/{scan}_segmenter.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.segmenter.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.needs.memory("segment_scan")),
            runtime=growing(study.needs.minutes("segment_scan")),
            gpu=study.config.fuse.segmenter.gpu,
        params:
            proof=study.jobs.proof("segment_scan"),
            maps=study.fuse.map_options,
        shell:
            "popatlas step SegmentScan --subject {wildcards.scan:q} --threads {threads} --in_target {input.target:q}"
            " --in_network {input.network:q} --gpu {resources.gpu} --out_file {output.dseg:q} {params.maps} {params.proof} --record"
            " {log:q}.json > {log:q} 2>&1"
