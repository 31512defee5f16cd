// Package settings owns what the agent's settings say of the store of Wasm modules.
package settings

import (
	"fmt"
	"log/slog"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/wasm"
)

// Store is the configuration of the store in a directory. envoy tries each module, if the settings do not say that none does.
func Store(cfg *config.Config, dir string, envoy wasm.Envoy, log *slog.Logger) (wasm.Config, error) {
	mirrors, err := wasm.ParseMirrors(cfg.WasmMirrors)
	if err != nil {
		return wasm.Config{}, fmt.Errorf("%s: %w", cfg.Spelled("wasmMirrors"), err)
	}
	c := wasm.Config{
		Dir: dir, MaxModule: int64(cfg.WasmMaxBinarySize), MaxAge: cfg.WasmModuleExpiry,
		SecretsDir: cfg.WasmSecretsDir, DockerConfig: cfg.DockerConfig, CAFile: cfg.WasmCAFile,
		Allow: cfg.WasmAllow, Insecure: cfg.WasmInsecureRegistries, Blocked: cfg.WasmBlockedCIDRs, Mirrors: mirrors,
		Compliance: cfg.CompliancePolicy, Log: log,
	}
	if cfg.WasmCheck {
		c.Envoy = envoy
	}
	return c, nil
}
