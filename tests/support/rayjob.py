"""The fields of KubeRay's RayJob that files here may have, by their types; unknown ones are refused.

A part of KubeRay's own schema (helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml, master of 19 August 2026), which
is too large for a copy. What lies deeper than this, Kubernetes' own schema of pods, is left to the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _object(fields: Mapping[str, Any] = {}, **names: str) -> dict[str, Any]:
    """`fields`: name -> schema. `names`: type -> names of fields of this type."""
    plain = {name: {"type": kind} for kind, listed in names.items() for name in listed.split()}
    return {"type": "object", "properties": {**plain, **fields}, "additionalProperties": False}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_CONTAINER = _object(
    string="image imagePullPolicy name restartPolicy terminationMessagePath terminationMessagePolicy workingDir",
    boolean="stdin stdinOnce tty",
    array="args command env envFrom ports resizePolicy restartPolicyRules volumeDevices volumeMounts",
    object="lifecycle livenessProbe readinessProbe resources securityContext startupProbe",
)
_POD = _object(
    {"containers": _list(_CONTAINER), "initContainers": _list(_CONTAINER)},
    string="dnsPolicy hostname hostnameOverride nodeName preemptionPolicy priorityClassName restartPolicy "
    "runtimeClassName schedulerName serviceAccount serviceAccountName subdomain",
    boolean="automountServiceAccountToken enableServiceLinks hostIPC hostNetwork hostPID hostUsers setHostnameAsFQDN "
    "shareProcessNamespace",
    integer="activeDeadlineSeconds priority terminationGracePeriodSeconds",
    array="ephemeralContainers hostAliases imagePullSecrets readinessGates resourceClaims schedulingGates tolerations "
    "topologySpreadConstraints volumes",
    object="affinity dnsConfig nodeSelector os overhead resources schedulingGroup securityContext",
)
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_GROUP = {
    "template": _object({"spec": _POD}, object="metadata"),
    "rayStartParams": _TEXTS,
    "labels": _TEXTS,
    "resources": {"type": "object"},
}
_CLUSTER = _object(
    {
        "autoscalerOptions": _object(
            string="image imagePullPolicy upscalingMode version",
            integer="idleTimeoutSeconds",
            array="args command env envFrom volumeMounts",
            object="resources securityContext",
        ),
        "headGroupSpec": _object(
            _GROUP, string="serviceType", boolean="enableIngress", object="headService ingressOptions"
        ),
        "workerGroupSpecs": _list(
            _object(
                _GROUP,
                string="groupName",
                boolean="suspend",
                integer="idleTimeoutSeconds maxReplicas minReplicas numOfHosts priority replicas",
                object="scaleStrategy",
            )
        ),
    },
    string="managedBy rayVersion",
    boolean="enableInTreeAutoscaling suspend",
    object="authOptions gcsFaultToleranceOptions headServiceAnnotations historyServerOptions networkPolicy tlsOptions "
    "upgradeStrategy",
)
SCHEMA = _object(
    {
        "metadata": _object({"labels": _TEXTS, "annotations": _TEXTS}, string="name generateName namespace"),
        "spec": _object(
            {"rayClusterSpec": _CLUSTER},
            string="entrypoint entrypointResources jobId managedBy runtimeEnvYAML submissionMode",
            boolean="shutdownAfterJobFinishes suspend",
            integer="activeDeadlineSeconds backoffLimit preRunningDeadlineSeconds ttlSecondsAfterFinished",
            number="entrypointNumCpus entrypointNumGpus",
            object="clusterSelector deletionStrategy metadata submitterConfig submitterPodTemplate",
        ),
    },
    string="apiVersion kind",
)
"""Of a whole file."""
