"""Where the modules of the last version went: their old paths import for one more release.

A former module has the names that it had, as far as they exist, and says where each is now and what it is called.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .deprecation import PACKAGE, former_name, warn_former
from .former_names import FORMER_NAMES

__all__ = ["FORMER_MODULES", "find_former_modules"]

#: By its old path the modules that have its names now, all below the package.
FORMER_MODULES = {
    "curvature.accumulation": "curvature.sums.accumulation curvature.approximation",
    "curvature.batches": "curvature.checked_batches",
    "curvature.budget": "curvature.memory_budget",
    "curvature.clusters": "curvature.factors.eigenvalue_clusters",
    "curvature.collect": "curvature.curvature curvature.data_pass",
    "curvature.combination": "curvature.approximation",
    "curvature.contraction": "curvature.sums.contraction",
    "curvature.corrected": "curvature.sums.eigenvalue_corrected",
    "curvature.coverage": "curvature.layers.coverage curvature.layers.probe",
    "curvature.enough": "curvature.enough_data",
    "curvature.exact": "curvature.sums.exact",
    "curvature.extraction": "curvature.layers.extraction",
    "curvature.layer": "curvature.layer_curvature",
    "curvature.linear_map": "curvature.layers.linear_map",
    "curvature.losses": "curvature.likelihood.known",
    "curvature.moments": "curvature.sums.moments",
    "curvature.patch_moments": "curvature.sums.patch_moments",
    "curvature.places": "curvature.layers.input_positions",
    "curvature.probe": "curvature.layers.probe",
    "curvature.processes": "curvature.distributed",
    "curvature.reader": "curvature.batch_format",
    "curvature.recipe": "curvature.approximation_choice curvature.curvature",
    "curvature.row_moments": "curvature.sums.patch_moments",
    "curvature.row_sample": "curvature.sums.row_reservoir",
    "curvature.rows": "curvature.layers.row_layout",
    "curvature.sketch": "curvature.factors.sketch",
    "curvature.sketched": "curvature.sums.sketched curvature.sums.row_operator curvature.sums.field_moments",
    "curvature.sketched_factor": "curvature.factors.sketched",
    "curvature.wrappers": "curvature.layers.wrappers",
    "diagnosis.collected": "diagnosis.features diagnosis.gradient_sums",
    "diagnosis.numbered": "diagnosis.sample_numbers",
    "evidence.ascent": "evidence.precision_updates evidence.verdicts.fixed_point",
    "evidence.blurred": "evidence.verdicts.pixel_candidates",
    "evidence.bridge": "evidence.laplace_torch",
    "evidence.checkpoint": "training.checkpoint evidence.random_state",
    "evidence.decay": "training.weight_decay",
    "evidence.demanding": "evidence.verdicts.subgroup_cost evidence.verdicts.fixed_coefficients",
    "evidence.distinct": "evidence.distinct_samples",
    "evidence.fit": "training.fit training.has_learned",
    "evidence.gates": "training.gate_policy",
    "evidence.gating": "evidence.closed_pathways symmetry.kernels.positions",
    "evidence.history": "training.history",
    "evidence.joint": "evidence.verdicts.joint_curvature",
    "evidence.loading": "training.loaders evidence.random_state",
    "evidence.projected": "evidence.verdicts.projection_loss",
    "evidence.recurring": "evidence.recurring_samples",
    "evidence.rehearsal": "training.dry_run",
    "evidence.restricted": "evidence.verdicts.restricted_evidence evidence.noise",
    "evidence.run": "training.run_state",
    "evidence.scales": "training.length_scales",
    "evidence.schedule": "training.schedule",
    "evidence.survival": (
        "evidence.verdicts.survivors evidence.verdicts.layer_survivor evidence.verdicts.network_survivors"
    ),
    "evidence.units": "training.regression_units",
    "morphism.apart": "morphism.isolated_run",
    "morphism.flow": "morphism.restrict.call_order",
    "morphism.harden_subgroups": "morphism.harden.subgroups",
    "morphism.harden_translation": "morphism.harden.translation",
    "morphism.hardened_layer": "morphism.harden.layer_report",
    "morphism.intertwine": "morphism.restrict.intertwiner",
    "morphism.merge_kernels": "morphism.harden.merged_layer",
    "morphism.optimiser": "morphism.optimizer",
    "morphism.relabel": "morphism.restrict.relabel",
    "morphism.restrict_layer": "morphism.restrict.layer",
    "morphism.restriction_plan": "morphism.restrict.plan",
    "morphism.stabilise": "morphism.harden.subgroup_layer",
    "morphism.trial": "morphism.trial_run",
    "morphism.walk": "morphism.module_tree",
    "nn.anchors": "nn.translation.anchors",
    "nn.block_products": "nn.kernels.block_products",
    "nn.certificate": "nn.measured.certificate nn.measured.convolution_norm",
    "nn.certificate_chain": "nn.measured.certificate_chain",
    "nn.composed": "nn.kernels.pair_sum",
    "nn.convolution": "nn.relaxed_layers",
    "nn.decided": "nn.last_decision",
    "nn.grouped": "nn.translation.grouped",
    "nn.kernel": "nn.kernels.pathway_sum",
    "nn.kernel_pathway": "nn.translation.kernel_pathway",
    "nn.mixed_basis": "nn.mixed.basis",
    "nn.mixed_bias": "nn.mixed.bias",
    "nn.mixed_composed": "nn.mixed.pair_basis",
    "nn.mixed_kernel": "nn.mixed.kernel",
    "nn.mixed_layers": "nn.mixed.layers",
    "nn.mixed_reduction": "nn.mixed.reduction",
    "nn.mixture": "nn.mixed.mixture",
    "nn.recorded": "nn.evidence_record",
    "nn.relaxed": "nn.relaxed_convolution",
    "nn.relaxed_translation": "nn.translation.relaxed_translation",
    "nn.resolution": "nn.measured.resolution",
    "nn.sectioned": "nn.kernels.sectioned",
    "nn.site_fields": "nn.translation.site_fields",
    "nn.site_pathways": "nn.translation.factored_pathway nn.translation.site_pathway nn.translation.dense_pathway",
    "nn.sparse_convolution": "nn.translation.sparse_convolution nn.translation.sparse_layers",
    "nn.stabiliser": "nn.measured.stabiliser nn.kernels.pathway_sum nn.measured.kernel_symmetry",
    "nn.types": "nn.field_types",
    "search.conditions": "search.evolution.conditions",
    "search.crew": "search.evolution.workers",
    "search.differentiate": "search.gradient.differentiate",
    "search.evolve": "search.evolution.evolve",
    "search.family": "search.evolution.results",
    "search.generations": "search.evolution.generations",
    "search.genome": "search.evolution.genome",
    "search.network": "search.evolution.network",
    "search.order_of_use": "search.evolution.order_of_use",
    "search.settings": "search.gradient.settings",
    "search.shares_history": "search.gradient.shares_history",
    "search.store": "search.evolution.weights_store",
    "search.task": "search.evolution.task",
    "symmetry.band": "symmetry.kernels.sampling",
    "symmetry.cache_key": "symmetry.kernels.cache_key",
    "symmetry.composed": "symmetry.kernels.irrep_pairs",
    "symmetry.decomposition": "symmetry.groups.decomposition",
    "symmetry.embedded_space": "symmetry.groups.embedded_space",
    "symmetry.equivariance_record": "symmetry.equivariance.error_record",
    "symmetry.finite": "symmetry.groups.finite_groups",
    "symmetry.graded": "symmetry.kernels.graded",
    "symmetry.grid_action": "symmetry.grid.field_action",
    "symmetry.grid_loss": "symmetry.kernels.grid_loss symmetry.kernels.ring_geometry",
    "symmetry.harmonics": "symmetry.kernels.harmonics",
    "symmetry.input_irreps": "symmetry.kernels.input_irreps",
    "symmetry.interpolation": "symmetry.grid.interpolation",
    "symmetry.irreps": "symmetry.groups.irreps",
    "symmetry.kernel_cache": "symmetry.kernels.kernel_cache",
    "symmetry.kernel_equivariance": "symmetry.equivariance.kernel_error",
    "symmetry.operator_norm": "symmetry.equivariance.operator_norm",
    "symmetry.pathway": "symmetry.kernels.pathway",
    "symmetry.patterns": "symmetry.kernels.patterns",
    "symmetry.platonic": "symmetry.groups.platonic",
    "symmetry.positions": "symmetry.kernels.positions symmetry.kernels.position_search symmetry.groups.conjugation",
    "symmetry.relaxation": "symmetry.kernels.pathway_kernels symmetry.kernels.plan nn.strict_state",
    "symmetry.restriction": "symmetry.groups.restriction",
    "symmetry.sites": "symmetry.grid.sites",
    "symmetry.span": "symmetry.kernels.linear_algebra",
    "symmetry.stabiliser": "symmetry.kernels.fixed_kernels symmetry.kernels.subgroup_search symmetry.kernels.positions",
    "symmetry.strides": "symmetry.grid.strides",
    "symmetry.subgroup": "symmetry.groups.subgroup",
    "symmetry.subgroup_ids": (
        "symmetry.groups.subgroup_ids symmetry.groups.subgroup_embedding symmetry.groups.subgroup_list"
    ),
    "symmetry.subgroup_lookup": "symmetry.groups.subgroup_lookup",
    "symmetry.subgroup_names": "symmetry.groups.subgroup_names",
    "symmetry.subgroups": "symmetry.groups.lattice",
    "symmetry.telling": "symmetry.kernels.distinguishing_frequency",
    "symmetry.tetrahedral": "symmetry.groups.tetrahedral",
    "symmetry.turned_names": "symmetry.groups.turned_names",
    "symmetry.turning": "symmetry.groups.rotations curvature.factors.eigenvalue_clusters",
    "symmetry.twisted": "symmetry.groups.twisted",
}


class _FormerModule(ModuleType):
    """Stands where a file was; called, it is the function of its name, which importing the file may have hidden."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **options)


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of the table, after everything that exists."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return importlib.machinery.ModuleSpec(fullname, self) if package == PACKAGE and name in FORMER_MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return _FormerModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        path = module.__name__.partition(".")[2]
        homes, renamed = FORMER_MODULES[path].split(), FORMER_NAMES.get(path, {})

        def former(name: str) -> Any:
            if name in renamed:
                return former_name(f"{module.__name__}.{name}", renamed[name])
            if not name.startswith("__"):
                for home in homes:
                    module_now = importlib.import_module(f"{PACKAGE}.{home}")
                    if hasattr(module_now, name):
                        warn_former(f"{module.__name__}.{name}", f"{module_now.__name__}.{name}")
                        return getattr(module_now, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = former


def find_former_modules() -> None:
    """Let old paths import. Called once, when the package is imported.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     from escnn_relax.nn.convolution import RelaxedR2Conv
    >>> RelaxedR2Conv.__module__
    'escnn_relax.nn.relaxed_layers'
    """
    if not any(isinstance(finder, _FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(_FormerModules())
