from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

import valued
from reports.tasks import generate


@login_required
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "home.html")  # its page view is recorded by the middleware


@login_required
@require_POST
def ask(request: HttpRequest) -> HttpResponse:
    title = request.POST["title"]
    valued.action("report.requested", attributes={"title": title})
    generate.delay(title)
    return redirect("home")
