package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pausa-run/pausa/pod/manifest"
)

// kind is one sort of object as people name it.
type kind struct {
	name    string // as in manifests
	plural  string
	group   string // "" is the core group
	global  bool   // not in a namespace
	inAll   bool   // what "all" stands for
	aliases []string
}

// typed is the kind as kubectl prints it in front of a name: "pod", "deployment.apps".
func (k kind) typed() string {
	if k.group == "" {
		return strings.ToLower(k.name)
	}
	return strings.ToLower(k.name) + "." + k.group
}

func (k kind) names() []string {
	return append([]string{k.plural, strings.ToLower(k.name)}, k.aliases...)
}

func kinds() []kind {
	return []kind{
		{name: "Pod", plural: "pods", inAll: true, aliases: []string{"po"}},
		{name: "Service", plural: "services", inAll: true, aliases: []string{"svc"}},
		{name: "Deployment", plural: "deployments", group: "apps", inAll: true, aliases: []string{"deploy"}},
		{name: "ConfigMap", plural: "configmaps", aliases: []string{"cm"}},
		{name: "Secret", plural: "secrets"},
		{name: "Endpoints", plural: "endpoints", aliases: []string{"ep"}},
		{name: "EndpointSlice", plural: "endpointslices", group: "discovery.k8s.io"},
		{name: "Namespace", plural: "namespaces", global: true, aliases: []string{"ns"}},
	}
}

// parseKind finds a kind by any of its names, with or without its group.
func parseKind(word string) (kind, error) {
	name, err := manifest.KindFor(word)
	if err != nil {
		return kind{}, err
	}
	return kindOf(name), nil
}

// kindOf finds the kind of an object; one that this program does not know yet
// gets names that read well.
func kindOf(name string) kind {
	for _, k := range kinds() {
		if k.name == name {
			return k
		}
	}
	return kind{name: name, plural: strings.ToLower(name) + "s"}
}

// target is what a command line asks for: a kind, and a name or "" for all.
type target struct {
	kind kind
	name string
}

// parseTargets reads "KIND[,KIND] [NAME...]" or "KIND/NAME...".
func parseTargets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("name a kind: %s or all", strings.Join(allPlurals(), ", "))
	}
	if strings.Contains(args[0], "/") {
		return parseSlashed(args)
	}
	var all []target
	for word := range strings.SplitSeq(args[0], ",") {
		found, err := expandKind(word)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(args) == 1 {
		return all, nil
	}
	if len(all) > 1 {
		return nil, fmt.Errorf("%q with a name says too little: name one kind, as in pod/%s", args[0], args[1])
	}
	var out []target
	for _, name := range args[1:] {
		if strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q mixes two ways to name objects: write either KIND NAME... or KIND/NAME... throughout", strings.Join(args, " "))
		}
		out = append(out, target{all[0].kind, name})
	}
	return out, nil
}

func parseSlashed(args []string) ([]target, error) {
	var out []target
	for _, arg := range args {
		word, name, ok := strings.Cut(arg, "/")
		if !ok || name == "" || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%q is not KIND/NAME", arg)
		}
		k, err := parseKind(word)
		if err != nil {
			return nil, err
		}
		out = append(out, target{k, name})
	}
	return out, nil
}

func expandKind(word string) ([]target, error) {
	if word != "all" {
		k, err := parseKind(word)
		return []target{{kind: k}}, err
	}
	var out []target
	for _, k := range kinds() {
		if k.inAll {
			out = append(out, target{kind: k})
		}
	}
	return out, nil
}

func allPlurals() []string {
	var out []string
	for _, k := range kinds() {
		out = append(out, k.plural)
	}
	return slices.Clip(out)
}

// podName reads the POD argument of logs, exec and attach: "NAME" or "pod/NAME".
func podName(arg string) (string, error) {
	word, name, ok := strings.Cut(arg, "/")
	if !ok {
		return arg, nil
	}
	if k, err := parseKind(word); err != nil {
		return "", err
	} else if k.name != "Pod" {
		return "", fmt.Errorf("%s is not a pod: name one of its pods, see 'pausa get pods'", arg)
	}
	return name, nil
}
