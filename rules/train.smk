# A trained network is an input like any other: no rule makes it again (study.needs_training).
if study.needs_training("trust"):

    rule train_trust:
        """Train the network and the data parameters of the method dataparams, once for the cohort."""
        input:
            unpack(study.asks("train_trust", study.training_files("trust"), atlases="cohort/trust-atlases.json")),
        output:
            **study.outputs("train_trust"),
        log:
            study.log("train_trust"),
        benchmark:
            "benchmarks/train/train_trust.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.dataparams.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.training_memory("trust")),
            runtime=growing(720),
            gpu=study.config.fuse.dataparams.gpu,
        params:
            proof=study.proof("train_trust"),
            lists=study.training_lists("trust"),
            settings=study.training_settings("trust"),
        shell:
            "popatlas step TrainTrust --threads {threads} --in_labels @{params.lists[labels]} --in_targets"
            " @{params.lists[targets]} --in_dsegs @{params.lists[dsegs]} --scans @{params.lists[scans]} --atlases"
            " @{input.atlases:q} --settings {params.settings:q} --gpu {resources.gpu} --out_network {output.network:q}"
            " --out_parameters {output.parameters:q} --out_curve {output.curve:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.needs_training("segmenter"):

    rule train_segmenter:
        """Train the network that labels scans without registration, on fused labels, once for the cohort."""
        input:
            unpack(study.asks("train_segmenter", study.training_files("segmenter"))),
        output:
            **study.outputs("train_segmenter"),
        log:
            study.log("train_segmenter"),
        benchmark:
            "benchmarks/train/train_segmenter.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.segmenter.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(study.training_memory("segmenter")),
            runtime=growing(720),
            gpu=study.config.fuse.segmenter.gpu,
        params:
            proof=study.proof("train_segmenter"),
            lists=study.training_lists("segmenter"),
            settings=study.training_settings("segmenter"),
        shell:
            "popatlas step TrainSegmenter --threads {threads} --in_targets @{params.lists[targets]} --in_dsegs"
            " @{params.lists[dsegs]} --scans @{params.lists[scans]} --settings {params.settings:q} --gpu {resources.gpu}"
            " --out_network {output.network:q} --out_curve {output.curve:q} {params.proof} --record {log:q}.json > {log:q} 2>&1"


if study.has_segmenter:

    rule segment_scan:
        """Label a brain with the trained network, without any registration."""
        input:
            unpack(
                study.asks(
                    "segment_scan",
                    target="{scan}_desc-brain_T1w.nii.gz",
                    network=study.network_file("segmenter", "network.safetensors"),
                )
            ),
        output:
            **study.outputs("segment_scan"),
        log:
            study.log("segment_scan"),
        benchmark:
            "benchmarks/fuse/{scan}_segmenter.tsv"
        conda:
            "../envs/gpu.yaml" if study.config.fuse.segmenter.gpu else "../envs/cpu.yaml"
        resources:
            mem_mb=growing(4000),
            runtime=30,
            gpu=study.config.fuse.segmenter.gpu,
        params:
            proof=study.proof("segment_scan"),
            maps=study.map_options,
        shell:
            "popatlas step SegmentScan --subject {wildcards.scan:q} --threads {threads} --in_target {input.target:q}"
            " --in_network {input.network:q} --gpu {resources.gpu} --out_file {output.dseg:q} {params.maps} {params.proof} --record"
            " {log:q}.json > {log:q} 2>&1"
