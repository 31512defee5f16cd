package agent

import (
	"context"
	"log/slog"

	"understudy.mesh/bootstrap"
	workload "understudy.mesh/pkg/agent/internal/identity"
	"understudy.mesh/pkg/agent/internal/reach"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/istiod"
)

// EnvoyInfo is what the admin API of a pod's Envoy says at /server_info, or why that is not known.
type EnvoyInfo struct {
	JSON    []byte
	Unknown error
}

// CheckIstiod tries what an agent with these settings, which has its configuration from istiod, needs of it, its
// certificate included. It changes nothing.
// The error says what of the settings is no name of a node.
func CheckIstiod(ctx context.Context, cfg *config.Config, info EnvoyInfo, log *slog.Logger) ([]istiod.Finding, error) {
	node, err := bootstrap.Node(cfg.Node).Proto()
	if err != nil {
		return nil, err
	}
	x := istiod.Examination{
		Dial: reach.Istiod(cfg), CA: reach.CA(cfg), Node: node, ServerInfo: info.JSON, NoServerInfo: info.Unknown, Log: log,
	}
	if !cfg.FileMountedCerts {
		x.Sign = func(ctx context.Context) (string, error) { return workload.Try(ctx, cfg) }
	}
	return x.Run(ctx), nil
}
