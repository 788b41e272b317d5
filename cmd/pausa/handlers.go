package main

import (
	"fmt"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/runtime"
)

// runtimeHandlers are the built-in one and those of the settings.
func runtimeHandlers(c *config.Config) (*runtime.Handlers, error) {
	var programs []runtime.Handler
	for _, r := range c.Runtimes.Handlers {
		programs = append(programs, runtime.Handler{
			Name: r.Name, Aliases: r.Aliases,
			Program: &runtime.Program{Name: r.Name, Path: r.Path, Root: r.Root, Args: r.Args},
		})
	}
	handlers, err := runtime.NewHandlers(c.Runtimes.Default, c.Runtimes.Aliases, programs...)
	if err != nil {
		return nil, fmt.Errorf("settings of runtimes: %w", err)
	}
	return handlers, nil
}

// missingPrograms says of handlers that can make no containers why.
func missingPrograms(handlers *runtime.Handlers) []string {
	var out []string
	all, _ := handlers.List()
	for _, h := range all {
		if h.Problem != nil {
			out = append(out, fmt.Sprintf("pods of runtime handler %s cannot be started: %v", h.Name, h.Problem))
		}
	}
	return out
}
