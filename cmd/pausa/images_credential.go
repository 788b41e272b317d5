package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/distribution/reference"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// credential is the one for the registry of ref that the flags name; nil
// leaves the choice to the daemon.
func (p *program) credential(ctx *cli.Context, ref string) (*pausav1.RegistryCredential, error) {
	creds, file := ctx.String("creds"), ctx.String("authfile")
	switch {
	case creds != "" && file != "":
		return nil, badUsage(ctx, "--creds and --authfile exclude each other")
	case creds != "":
		return p.userCredential(creds)
	case file != "":
		return fileCredential(file, ref)
	}
	return nil, nil
}

func (p *program) userCredential(creds string) (*pausav1.RegistryCredential, error) {
	user, password, ok := strings.Cut(creds, ":")
	if !ok {
		fd, terminal := p.terminal()
		if !terminal {
			return nil, errors.New("--creds has no password, and there is no terminal to ask for it: write --creds USER:PASSWORD, or use --authfile")
		}
		fmt.Fprintf(p.err, "Password of %s: ", user)
		typed, err := term.ReadPassword(fd)
		fmt.Fprintln(p.err)
		if err != nil {
			return nil, fmt.Errorf("read password: %w", err)
		}
		password = string(typed)
	}
	if user == "" || password == "" {
		return nil, errors.New("--creds needs a user and a password: write --creds USER:PASSWORD")
	}
	return &pausav1.RegistryCredential{Username: user, Password: password}, nil
}

// authFile is docker's config.json, as far as it holds credentials.
type authFile struct {
	Auths map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
}

func fileCredential(file, ref string) (*pausav1.RegistryCredential, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	var f authFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read credentials: %s is no docker configuration: %w", file, err)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	domain := reference.Domain(named)
	for key, a := range f.Auths {
		if registryOf(key) == domain {
			return &pausav1.RegistryCredential{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, Server: domain}, nil
		}
	}
	return nil, fmt.Errorf("%s has no credential for %s", file, domain)
}

// registryOf is the registry that a key of the file is for.
func registryOf(key string) string {
	_, rest, ok := strings.Cut(key, "://")
	if !ok {
		rest = key
	}
	host, _, _ := strings.Cut(rest, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return "docker.io"
	}
	return host
}
