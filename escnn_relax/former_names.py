"""Names of the last version that are others now: they work for one more release, and say what they are called.

Files that went elsewhere with their names are in :mod:`escnn_relax.former_modules`.
"""

__all__ = ["FORMER_NAMES"]

#: By the path that it was at, below the package, each old name with the path and name of what it is now.
FORMER_NAMES: dict[str, dict[str, str]] = {
    "": {
        "carry_optimiser": ":carry_optimizer",
    },
    "curvature.accumulation": {
        "WrittenMoments": "curvature.sums.accumulation:OutputMoments",
    },
    "curvature.batches": {
        "counting": "curvature.checked_batches:drop_uncounted",
        "detached": "curvature.checked_batches:detach_input",
    },
    "curvature.clusters": {
        "turned": "curvature.factors.eigenvalue_clusters:turn_clusters",
    },
    "curvature.collect": {
        "detached": "curvature.checked_batches:detach_input",
    },
    "curvature.conventions": {
        "APPROXIMATIONS": "curvature.approximation_choice:APPROXIMATIONS",
    },
    "curvature.coverage": {
        "Part": "curvature.layers.coverage:LayerWeights",
    },
    "curvature.layers": {
        "alike": "curvature.layers.known_layers:alike",
        "obstacle": "curvature.layers.known_layers:obstacle",
    },
    "curvature.losses": {
        "of_loss": "curvature.likelihood.known:loss_likelihood",
    },
    "curvature.moments": {
        "accurate": "curvature.sums.moments:at_least_single",
        "counted": "curvature.sums.moments:weigh_samples",
    },
    "curvature.processes": {
        "agreed": "curvature.distributed:broadcast_first",
        "gathered": "curvature.distributed:gather_processes",
        "summed": "curvature.distributed:sum_processes",
        "unpadded": "curvature.distributed:drop_padding",
    },
    "curvature.reader": {
        "Asked": "curvature.batch_format:Query",
        "mapped": "curvature.batch_format:map_tensors",
        "of_samples": "curvature.batch_format:select_samples",
        "tensors": "curvature.batch_format:input_tensors",
    },
    "curvature.row_sample": {
        "RowSample": "curvature.sums.row_reservoir:RowReservoir",
    },
    "curvature.rows": {
        "Arrangement": "curvature.layers.row_layout:RowLayouts",
    },
    "curvature.wrappers": {
        "unwrapped": "curvature.layers.wrappers:unwrap",
    },
    "diagnosis.collected": {
        "Collected": "diagnosis.gradient_sums:GradientSums",
    },
    "diagnosis.gradients": {
        "relaxed_copy": "diagnosis.gradients:copy_relaxed",
        "start_anew": "diagnosis.gradients:reinitialise",
    },
    "diagnosis.numbered": {
        "Numbered": "diagnosis.sample_numbers:NumberedLoader",
        "numbered": "diagnosis.sample_numbers:number_samples",
    },
    "diagnosis.samples": {
        "joined": "diagnosis.samples:concatenate",
    },
    "diagnosis.strictness": {
        "TRIED": "diagnosis.strictness:SAMPLES",
        "kept_elements": "diagnosis.strictness:stabiliser",
    },
    "evidence": {
        "EpochRecord": "training:EpochRecord",
        "History": "training:History",
        "fit": "training:fit",
    },
    "evidence.gating": {
        "opened": "evidence.closed_pathways:weights_open",
    },
    "evidence.loading": {
        "Part": "training.loaders:LoaderPart",
        "chance_kept": "evidence.random_state:random_state_kept",
    },
    "evidence.restricted": {
        "Part": "evidence.verdicts.kernel_family:FamilyBlock",
    },
    "evidence.scales": {
        "Scales": "training.length_scales:LengthScales",
    },
    "morphism": {
        "carry_optimiser": "morphism:carry_optimizer",
    },
    "morphism.harden": {
        "HardenedLayer": "morphism:HardenedLayer",
        "harden": "morphism:harden",
    },
    "morphism.optimiser": {
        "carry_optimiser": "morphism:carry_optimizer",
    },
    "morphism.restrict": {
        "restrict": "morphism:restrict",
    },
    "morphism.trial": {
        "first_type": "morphism.example_inputs:first_type",
    },
    "nn.certificate": {
        "Apart": "nn.measured.error_sources:ErrorSources",
        "interpolation_apart": "nn.measured.error_sources:error_sources",
        "norm_of": "nn.measured.certificate:weights_norm",
    },
    "nn.kernel": {
        "PathwayKernel": "nn.kernels.pathway_sum:PathwaySum",
    },
    "nn.mixed": {
        "MixedConvolution": "nn.mixed.convolution:MixedConvolution",
    },
    "nn.mixed_basis": {
        "Part": "nn.mixed.basis:Combination",
    },
    "nn.mixed_reduction": {
        "kept_summands": "nn.mixed.reduction:select_summands",
    },
    "search": {
        "Differentiated": "search:GradientSearchResult",
        "Evolved": "search:EvolutionResult",
    },
    "search.differentiate": {
        "Differentiated": "search:GradientSearchResult",
    },
    "search.family": {
        "Evolved": "search:EvolutionResult",
        "pareto_front": "search.evolution.individual:pareto_front",
    },
    "symmetry.band": {
        "band_of": "symmetry.kernels.sampling:layer_band",
    },
    "symmetry.composed": {
        "Between": "symmetry.kernels.irrep_pairs:IrrepBlock",
        "Composed": "symmetry.kernels.irrep_pairs:BlockKernels",
        "frame_of": "symmetry.kernels.irrep_pairs:make_frame",
        "irrep_places": "symmetry.kernels.irrep_pairs:irrep_channels",
    },
    "symmetry.equivariance": {
        "EquivarianceError": "symmetry.equivariance.error_record:EquivarianceError",
        "acts_on_grid": "symmetry.grid.field_action:acts_on_grid",
        "assert_equivariant": "symmetry.equivariance.model_error:assert_equivariant",
        "equivariance_error": "symmetry.equivariance.model_error:equivariance_error",
        "grid_elements": "symmetry.equivariance.error_record:grid_elements",
        "kernel_equivariance_error": "symmetry.equivariance.kernel_error:kernel_equivariance_error",
    },
    "symmetry.finite": {
        "elements_of": "symmetry.groups.finite_groups:group_elements",
        "order_of": "symmetry.groups.finite_groups:group_order",
        "tabled": "symmetry.groups.finite_groups:table_embedding",
    },
    "symmetry.grid": {
        "grid_permutation": "symmetry.grid.kernel_action:grid_permutation",
        "isotypic_projection": "symmetry.grid.kernel_action:isotypic_projection",
        "transform_kernels": "symmetry.grid.kernel_action:transform_kernels",
    },
    "symmetry.grid_loss": {
        "LossOf": "symmetry.kernels.ring_geometry:LossSums",
        "contained_irreps": "symmetry.kernels.grid_loss:irrep_multiplicities",
        "settling_size": "symmetry.kernels.grid_loss:sufficient_size",
    },
    "symmetry.harmonics": {
        "moved_harmonics": "symmetry.kernels.harmonics:harmonic_action",
    },
    "symmetry.input_irreps": {
        "SECTIONED_ABOVE": "symmetry.kernels.input_irreps:SECTION_THRESHOLD",
    },
    "symmetry.interpolation": {
        "noise_needed": "symmetry.grid.interpolation:sufficient_noise",
    },
    "symmetry.irreps": {
        "checked_frequency": "symmetry.groups.irreps:check_frequency",
        "chosen_irreps": "symmetry.groups.irreps:select_irreps",
    },
    "symmetry.kernel_cache": {
        "announced": "symmetry.kernels.kernel_cache:announce",
    },
    "symmetry.pathway": {
        "BEYOND_BAND": "symmetry.kernels.pathway:BREAKING_OFF_BAND",
    },
    "symmetry.patterns": {
        "patterns_of": "symmetry.kernels.patterns:band_patterns",
    },
    "symmetry.positions": {
        "at": "symmetry.groups.conjugation:conjugate",
        "smaller": "symmetry.groups.conjugation:smaller_subgroups",
        "standard": "symmetry.groups.conjugation:standard_position",
    },
    "symmetry.sites": {
        "largest_permuting": "symmetry.grid.sites:largest_grid_subgroup",
    },
    "symmetry.span": {
        "sectioned": "symmetry.kernels.linear_algebra:orthonormal_sections",
    },
    "symmetry.subgroup_lookup": {
        "id_of_name": "symmetry.groups.subgroup_lookup:lookup_id",
    },
    "symmetry.telling": {
        "kernels_of_frequency": "symmetry.kernels.distinguishing_frequency:kernel_count",
    },
    "symmetry.turned_names": {
        "conjugated": "symmetry.groups.turned_names:conjugate_id",
        "turned_id": "symmetry.groups.turned_names:parse_name",
    },
    "symmetry.turning": {
        "turned": "symmetry.groups.rotations:rotation_matrices",
    },
}
