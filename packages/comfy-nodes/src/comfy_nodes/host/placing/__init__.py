"""Where the layers of a loaded model live, from the header of its file to the patcher that moves them.

May import: _errors, _request, app.
"""
